#!/bin/sh
# Called by udhcpc with the lease in its environment.
case "$1" in
bound|renew)
  ip address flush dev "$interface"
  ip address add "$ip/$mask" dev "$interface"
  ip link set "$interface" up
  for one in $router; do ip route replace default via "$one" dev "$interface"; done
  : > /etc/resolv.conf
  [ -z "$domain" ] || echo "search $domain" >> /etc/resolv.conf
  for one in $dns; do echo "nameserver $one" >> /etc/resolv.conf; done
  echo "$ip" > /run/address
  ;;
deconfig)
  ip link set lo up
  ip link set "$interface" up
  ;;
esac
