#!/bin/sh
# Called by mmdebstrap with the new root file system's folder ($1); RECIPE is this folder, OUT takes what the boot needs.
set -eu
root=$1
cp -R --no-preserve=ownership "$RECIPE/files/." "$root/"
cp -L "$root"/boot/vmlinuz-* "$OUT/vmlinuz"
cp "$root/bin/busybox" "$OUT/busybox"
rm -rf "$OUT/modules"
mkdir -p "$OUT/modules"
number=10
for module in virtio/virtio_ring virtio/virtio virtio/virtio_pci_modern_dev virtio/virtio_pci_legacy_dev virtio/virtio_pci \
  block/virtio_blk; do
  cp "$root"/lib/modules/*/kernel/drivers/$module.ko "$OUT/modules/$number-${module##*/}.ko"
  number=$((number + 1))
done
chroot "$root" dpkg-query -W > "$OUT/packages.txt"
for unit in systemd-networkd.service systemd-resolved.service ssh.service mayfly-gate.service; do
  systemctl --root="$root" -q enable $unit
done
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  dpkg-db-backup.timer systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pstore.service \
  getty@tty1.service; do
  systemctl --root="$root" -q mask $unit
done
# With cloud-init's one kind of key the agent would wait half an hour for another.
sed -i 's/^Provisioning.SshHostKeyPairType=.*/Provisioning.SshHostKeyPairType=ed25519/' "$root/etc/waagent.conf"
grep -qx Provisioning.SshHostKeyPairType=ed25519 "$root/etc/waagent.conf"
# Files newer than the fixed date get that date, which would make compiled Python of them look stale at each start.
find "$root/usr" -name __pycache__ -prune -exec rm -rf {} +
chroot "$root" python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /usr/lib/python3.11 \
  /usr/lib/python3/dist-packages || :
# Nothing has to be brought up to date at the first boot.
for folder in etc var; do
  printf '# no update needed\nTIMESTAMP_NSEC=%s000000000\n' "$SOURCE_DATE_EPOCH" > "$root/$folder/.updated"
done
# What differs from build to build, is of this machine, or of no use.
rm -rf "$root"/boot/* "$root"/vmlinuz* "$root"/initrd.img* "$root"/etc/ssh/ssh_host_* \
  "$root"/var/lib/systemd/random-seed "$root"/var/lib/dbus/machine-id "$root"/etc/.resolv.conf.systemd-resolved.bak \
  "$root"/var/cache/ldconfig/aux-cache "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old \
  "$root"/var/lib/apt/lists/* "$root"/var/lib/dpkg/*-old "$root"/etc/passwd- "$root"/etc/group- "$root"/etc/shadow- \
  "$root"/etc/gshadow- "$root"/etc/.pwd.lock "$root"/etc/subuid- "$root"/etc/subgid- "$root"/run/* "$root"/tmp/* \
  "$root"/var/tmp/* "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/var/cache/man
find "$root/var/log" -type f -delete
mkdir -p "$root"/var/cache/apt/archives/partial "$root"/var/lib/apt/lists/partial
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
