#!/bin/sh
# Runs as pid 1 of a lab host, before its root is in place: builds the root, pivots into it and hands over to the host's init.
# usage: boot.sh DIRECTORY HOSTNAME
set -eu
dir=$1 name=$2
root=$dir/root

mount --make-rprivate /
cgroups=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $3, $2, $4 }' /proc/mounts)
fresh=
[ -e "$dir/upper/etc/clab" ] || fresh=1
[ -z "$fresh" ] || sh "$dir/files/provision.sh" hide "$dir"
mount -t overlay "clab-$name" -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"

[ -z "$fresh" ] || sh "$dir/files/provision.sh" fill "$dir"

mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/var/lib/cloudlet" "$root/var/lib/lxd"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/dev/net" "$root/run/lock" "$root/run/sshd"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
node() { mknod -m "$2" "$root/dev/$1" c "$3" "$4"; }
node null 666 1 3
node zero 666 1 5
node full 666 1 7
node random 666 1 8
node urandom 666 1 9
node tty 666 5 0
node console 600 5 1
node kmsg 600 1 11
node fuse 666 10 229
node net/tun 666 10 200
[ ! -e /dev/kvm ] || node kvm 660 10 232
[ ! -e /dev/vhost-net ] || node vhost-net 660 10 238
[ ! -e /dev/loop-control ] || node loop-control 660 10 237
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

# each hierarchy shows only this host's own part of it, thanks to the cgroup namespace
echo "$cgroups" | while read -r type at options; do
  [ -n "$type" ] || continue
  [ "$at" = /sys/fs/cgroup ] || { mountpoint -q "$root/sys/fs/cgroup" || mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"; }
  mkdir -p "$root$at"
  if [ "$type" = cgroup2 ]; then
    mount -t cgroup2 cgroup2 "$root$at"
  else
    controller=$(echo "$options" | sed 's/\brw\b//;s/\brelatime\b//;s/\bnosuid\b//;s/\bnodev\b//;s/\bnoexec\b//;s/release_agent=[^,]*//;s/xattr//;s/,,*/,/g;s/^,//;s/,$//')
    mount -t cgroup -o "$controller" cgroup "$root$at"
  fi
done
# a hierarchy of its own may hold processes only in leaves
if [ "$(stat -fc %T "$root/sys/fs/cgroup")" = cgroup2fs ]; then
  mkdir -p "$root/sys/fs/cgroup/init.scope"
  echo 1 >"$root/sys/fs/cgroup/init.scope/cgroup.procs"
  for controller in $(cat "$root/sys/fs/cgroup/cgroup.controllers"); do
    echo "+$controller" >"$root/sys/fs/cgroup/cgroup.subtree_control" 2>/dev/null || :
  done
fi

# stores and pools need a real file system below them, as nobody may stack an overlay on an overlay's files
mount --bind "$dir/data/cloudlet" "$root/var/lib/cloudlet"
mount --bind "$dir/data/lxd" "$root/var/lib/lxd"

mkdir -p "$root/.old"
cd "$root"
pivot_root . .old
umount -l /.old
rmdir /.old
hostname "$name"
ip link set lo up
ip link set eth0 up
[ -e /etc/clab/systemd ] || exec /bin/sh /etc/clab/init.sh

# nothing of what systemd says or sets may reach the whole machine: its messages go to a file, its limits for files nowhere
: >/var/log/systemd.log
ln -sf /var/log/systemd.log /dev/kmsg
rm /dev/console
mount --bind /proc/sys/fs /proc/sys/fs
mount -o remount,bind,ro /proc/sys/fs
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target
