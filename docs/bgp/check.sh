#!/bin/sh
# Tries host.conf and router.conf in network namespaces: two hosts, a router, a client behind it. Needs root, bird2,
# iproute2 and python3. Exit status: 0 all holds, 1 something does not, 2 it could not be set up.
set -u
HERE=$(cd "$(dirname "$0")" && pwd)
VIP=10.78.0.2 VIP6=fd6d:6179:666c:79::a4e:2 RANGE6=fd6d:6179:666c:79::a4e:0/120
ROUTER=mfbgp-r HOST1=mfbgp-h1 HOST2=mfbgp-h2 CLIENT=mfbgp-c
PIDS='' RESULT=0
FOLDER=$(mktemp -d) || exit 2

cleanup() {
  trap - EXIT INT TERM
  for file in "$FOLDER"/*.pid; do [ -s "$file" ] && kill "$(cat "$file")" 2>/dev/null; done
  for pid in $PIDS; do kill "$pid" 2>/dev/null; done
  for name in $CLIENT $HOST1 $HOST2 $ROUTER; do ip netns del $name 2>/dev/null; done
  rm -rf "$FOLDER"
  exit $RESULT
}
trap cleanup EXIT
trap 'RESULT=2; exit' INT TERM

now() { echo $(($(date +%s%N) / 1000000)); }
# until_so MILLISECONDS COMMAND...: waits, and says whether it came true.
until_so() {
  end=$(($(now) + $1)); shift
  until "$@" >/dev/null 2>&1; do [ "$(now)" -lt $end ] || return 1; sleep 0.005; done
}
# holds WHAT COMMAND...: the command has to come true within twenty seconds.
holds() {
  what=$1 began=$(now); shift
  if until_so 20000 "$@"; then echo "ok    $what ($(($(now) - began)) ms)"; else echo "FAIL  $what"; RESULT=1; fi
}
leads_to() { ip -n $ROUTER route show $VIP | grep -q "via $1 "; }
leads6_to() { ip -n $ROUTER -6 route show $VIP6 | grep -q "via $1 "; }
leads_nowhere() { ! { ip -n $ROUTER route show $VIP; ip -n $ROUTER -6 route show $VIP6; } | grep -q via; }
answers() { [ "$(ip netns exec $CLIENT python3 "$FOLDER/ask.py" ${2:-$VIP})" = "$1" ]; }
takes() { ip -n $1 addr add $VIP/32 dev eth0; ip -n $1 addr add $VIP6/128 dev eth0 nodad; }
gives_up() { ip -n $1 addr del $VIP/32 dev eth0; ip -n $1 addr del $VIP6/128 dev eth0; }
bird_of() { name=$1; shift; birdc -s "$FOLDER/$name.ctl" "$@"; }
is_up() { bird_of $1 show protocols tor | grep -q Established && bird_of $1 show bfd sessions | grep -q " Up "; }

for name in $ROUTER $HOST1 $HOST2 $CLIENT; do
  ip netns add $name && ip -n $name link set lo up || { RESULT=2; exit; }
done
ip -n $ROUTER link add br0 type bridge && ip -n $ROUTER link set br0 up && ip -n $ROUTER addr add 10.79.0.1/24 dev br0 &&
  ip -n $ROUTER addr add fd00:79::1/64 dev br0 nodad || { RESULT=2; exit; }
for number in 1 2; do
  host=mfbgp-h$number
  ip -n $ROUTER link add p$number type veth peer name eth0 netns $host
  ip -n $ROUTER link set p$number master br0 up
  ip -n $host addr add 10.79.0.1$number/24 dev eth0
  ip -n $host addr add fd00:79::1$number/64 dev eth0 nodad
  ip -n $host link set eth0 up
  ip -n $host route add default via 10.79.0.1
  ip -n $host route add default via fd00:79::1
  # What a host has besides, and must not announce: the overlay and the routes to guests.
  ip -n $host link add mfvx type bridge
  ip -n $host link set mfvx up
  ip -n $host addr add 100.64.0.$number/16 dev mfvx
  ip -n $host route add 10.80.0.$number/32 dev mfvx proto 77
done
ip -n $ROUTER link add c0 type veth peer name eth0 netns $CLIENT
ip -n $ROUTER link set c0 up
ip -n $ROUTER addr add 198.51.100.1/24 dev c0
ip -n $ROUTER addr add 2001:db8::1/64 dev c0 nodad
ip -n $CLIENT addr add 198.51.100.2/24 dev eth0
ip -n $CLIENT addr add 2001:db8::2/64 dev eth0 nodad
ip -n $CLIENT link set eth0 up
ip -n $CLIENT route add default via 198.51.100.1
ip -n $CLIENT route add default via 2001:db8::1
ip netns exec $ROUTER sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1

cat >"$FOLDER/serve.py" <<'X'
import socket, sys
server = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
server.setsockopt(0, 15, 1)  # IP_FREEBIND, for both families: the address need not be here yet
server.setsockopt(1, 2, 1)
server.bind((sys.argv[1], 80))
server.listen(64)
while True:
    visitor = server.accept()[0]
    visitor.sendall(sys.argv[2].encode())
    visitor.close()
X
cat >"$FOLDER/ask.py" <<'X'
import socket, sys
with socket.create_connection((sys.argv[1], 80), 1) as server:
    print(server.recv(9).decode())
X
for number in 1 2; do
  for address in $VIP $VIP6; do
    ip netns exec mfbgp-h$number python3 "$FOLDER/serve.py" $address h$number & PIDS="$PIDS $!"
  done
  sed -e "s/@HOST_IP@/10.79.0.1$number/" -e 's/@HOST_AS@/65001/' -e 's/@TOR_IP@/10.79.0.1/' -e 's/@TOR_AS@/65000/' \
    -e 's|@VIP_RANGE@|10.78.0.0/24|' -e "s|@VIP_RANGE6@|$RANGE6|" -e "s/@HOST_IP6@/fd00:79::1$number/" -e 's/^log .*/log stderr all;/' "$HERE/host.conf" >"$FOLDER/mfbgp-h$number.conf"
done
sed -e 's/@TOR_IP@/10.79.0.1/' -e 's/@TOR_AS@/65000/' -e 's/@TOR_DEV@/br0/' -e 's|@HOSTS@|10.79.0.0/24|' -e 's/@HOST_AS@/65001/' \
  -e 's|@VIP_RANGE@|10.78.0.0/24|' -e "s|@VIP_RANGE6@|$RANGE6|" -e 's/^log .*/log stderr all;/' "$HERE/router.conf" >"$FOLDER/$ROUTER.conf"
# One that was there before BIRD was.
ip -n $HOST1 addr add fd6d:6179:666c:79::a4e:4/128 dev eth0 nodad
for name in $ROUTER $HOST1 $HOST2; do
  ip netns exec $name bird -f -c "$FOLDER/$name.conf" -s "$FOLDER/$name.ctl" -P "$FOLDER/$name.pid" 2>"$FOLDER/$name.log" &
  PIDS="$PIDS $!"
done
for name in $HOST1 $HOST2; do holds "$name has a session with the router" is_up $name; done
[ $RESULT = 0 ] || { RESULT=2; cat "$FOLDER"/*.log; exit; }

holds "an address that was there first leads to it" \
  sh -c "ip -n $ROUTER -6 route show fd6d:6179:666c:79::a4e:4 | grep -q 'via fd00:79::11 '"
ip -n $HOST1 addr del fd6d:6179:666c:79::a4e:4/128 dev eth0
takes $HOST1
holds "an address that a host takes leads to it" leads_to 10.79.0.11
holds "so does its IPv6 address" leads6_to fd00:79::11
holds "a client behind the router is answered" answers h1
holds "over IPv6 too" answers h1 $VIP6
# Other addresses of the host, one of the range on another device, a network of the range: none of them goes out.
ip -n $HOST1 addr add 10.78.0.9/32 dev mfvx
ip -n $HOST1 addr add fd6d:6179:666c:79::a4e:9/128 dev mfvx nodad
ip -n $HOST1 addr add 10.78.0.129/25 dev eth0
ip -n $HOST1 addr add 10.99.0.1/32 dev eth0
ip -n $HOST1 addr add 10.78.0.3/32 dev eth0
holds "another address follows" sh -c "ip -n $ROUTER route show 10.78.0.3 | grep -q via"
OUT=$(bird_of $HOST1 show route export tor | awk '$1 ~ /\// {print $1}' | sort | xargs)
holds "nothing else is announced ($OUT)" [ "$OUT" = "10.78.0.2/32 10.78.0.3/32 $VIP6/128" ]
gives_up $HOST1
holds "an address that nobody has leads nowhere" leads_nowhere
takes $HOST2
holds "it moves" leads_to 10.79.0.12
holds "over IPv6 too" leads6_to fd00:79::12
holds "and its new owner answers" answers h2
holds "over IPv6 too" answers h2 $VIP6
# Of two routes that are as good, the router takes that of the lower router id: so the first host has to lose its own by dying.
gives_up $HOST2
takes $HOST1
holds "it moves back" leads_to 10.79.0.11
ip -n $HOST1 link set eth0 down
takes $HOST2
holds "a dead host loses it" leads_to 10.79.0.12
holds "over IPv6 too" leads6_to fd00:79::12
holds "and a client is answered again" answers h2
holds "over IPv6 too" answers h2 $VIP6
