#!/bin/sh
# The init of a lab host: what sysvinit does at boot, and nothing else. Where systemd is the init, it does only the network by this.
set -u
# a handler, since ignoring a signal would be inherited by every service
trap : INT TERM HUP
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

ip address replace "$(cat /etc/clab/address)" dev eth0
echo 1 >/proc/sys/net/ipv4/ip_forward 2>/dev/null
/usr/sbin/sshd -f /etc/clab/sshd_config -E /var/log/sshd.log
[ "${1-}" != network ] || exit 0

for script in /etc/rc2.d/S*; do
  [ ! -x "$script" ] || "$script" start >>/var/log/boot.log 2>&1 </dev/null
done
: >/run/clab-ready

# waiting for a child reaps every orphan on the way
while :; do
  sleep 86400 &
  wait
done
