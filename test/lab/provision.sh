#!/bin/sh
# Makes the fresh root of a lab host differ from this machine: its own users, keys, services and package sources, and nothing of the operator's.
# usage: provision.sh hide|fill DIRECTORY   (hide: before the overlay is mounted, fill: after)
set -eu
upper=$2/upper root=$2/root files=$2/files
rc='etc/rc0.d etc/rc1.d etc/rc2.d etc/rc3.d etc/rc4.d etc/rc5.d etc/rc6.d etc/rcS.d'
emptied="root home mnt media srv $rc etc/apt/sources.list.d var/lib/apt/lists var/cache/apt var/log var/spool/cron etc/systemd/system"
gone='var/lib/cloudlet-lab etc/apt/sources.list usr/sbin/policy-rc.d etc/cloudlet'

whiteout() {
  [ -e "/$1" ] || return 0
  mkdir -p "$upper/$(dirname "$1")"
  rm -rf "${upper:?}/$1"
  mknod "$upper/$1" c 0 0
}

hide() {
  mkdir -p "$upper/var"
  for path in $emptied $gone; do whiteout "$path"; done
  for path in /* /.[!.]*; do
    case ${path#/} in
      bin | boot | dev | etc | home | lib* | media | mnt | opt | proc | root | run | sbin | srv | sys | tmp | usr | var) ;;
      *) whiteout "${path#/}" ;;
    esac
  done
}

fill() {
  for path in $emptied; do mkdir -p "$root/$path"; done
  chmod 700 "$root/root"
  mkdir -p "$root/var/log/apt" "$root/var/log/lxd" "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial" "$root/etc/clab"
  cp "$files/init.sh" "$files/sshd_config" "$files/address" "$root/etc/clab/"
  cp "$files/hostname" "$root/etc/hostname"
  cp "$files/machine-id" "$root/etc/machine-id"
  cp "$files/hosts" "$root/etc/hosts"
  rm -f "$root"/etc/ssh/ssh_host_*
  cp "$files/host_key" "$root/etc/ssh/ssh_host_ed25519_key"
  cp "$files/host_key.pub" "$root/etc/ssh/ssh_host_ed25519_key.pub"
  chmod 600 "$root/etc/ssh/ssh_host_ed25519_key"
  users
  : >"$root/etc/resolv.conf"
  # nobody looks up a manual page here, and indexing them takes longer than installing a hypervisor
  rm -f "$root/var/lib/man-db/auto-update"
  ( ulimit -n 65536 ) 2>/dev/null || tolerate
  [ ! -e "$files/systemd" ] || units
  [ ! -e "$files/lxd" ] || services
  [ ! -e "$files/node" ] || install -D -m 755 "$files/node" "$root/usr/local/bin/node"
  [ ! -e "$files/repository.list" ] || cp "$files/repository.list" "$root/etc/apt/sources.list.d/lab.list"
}

users() {
  sed -i '/^operator:/d' "$root/etc/passwd" "$root/etc/shadow"
  echo 'operator:x:1900:37::/home/operator:/bin/bash' >>"$root/etc/passwd"
  echo "operator:$(cat "$files/password"):20000:0:99999:7:::" >>"$root/etc/shadow"
  grep -q '^operator:' "$root/etc/group" || echo 'operator:x:37:' >>"$root/etc/group"
  mkdir -p "$root/etc/sudoers.d"
  echo 'operator ALL=(ALL:ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/operator"
  chmod 440 "$root/etc/sudoers.d/operator"
  for home in root home/operator; do
    mkdir -p "$root/$home/.ssh"
    cp "$files/client_key.pub" "$root/$home/.ssh/authorized_keys"
    chmod 700 "$root/$home/.ssh"
    chmod 600 "$root/$home/.ssh/authorized_keys"
  done
  chown -R 1900:37 "$root/home/operator"
}

# where this machine may not raise limits (no CAP_SYS_RESOURCE), start scripts that try must go on all the same
tolerate() {
  cat >"$root/lib/lsb/init-functions.d/90-lab" <<'END'
ulimit() { command ulimit "$@" 2>/dev/null || :; }
echo() { command echo "$@" 2>/dev/null || :; }
END
}

# of systemd's own units none but the targets that others name
units() {
  cp "$files/systemd" "$root/etc/clab/systemd"
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/etc/systemd/system-generators"
  for unit in "$root"/lib/systemd/system/*.target.wants/*; do
    case $unit in *.target) ;; *) ln -sf /dev/null "$root/etc/systemd/system/${unit##*/}" ;; esac
  done
  for generator in "$root"/lib/systemd/system-generators/*; do ln -sf /dev/null "$root/etc/systemd/system-generators/${generator##*/}"; done
  cat >"$root/etc/systemd/system/lab.service" <<'END'
[Unit]
Description=address and sshd of a lab host

[Service]
Type=forking
PIDFile=/run/sshd.pid
# a container may mount its own proc only where nothing lies over the host's
ExecStartPre=/bin/umount /proc/sys/fs
ExecStart=/bin/sh /etc/clab/init.sh network
ExecStartPost=/bin/sh -c ': >/run/clab-ready'
KillMode=process

[Install]
WantedBy=multi-user.target
END
  ln -s ../lab.service "$root/etc/systemd/system/multi-user.target.wants/lab.service"
}

# an LXD that is there before anybody comes to commission the host
services() {
  if [ -e "$files/systemd" ]; then
    systemctl --root="$root" enable --quiet lxcfs.service lxd.service
    return
  fi
  ln -s ../init.d/lxcfs "$root/etc/rc2.d/S01lxcfs"
  ln -s ../init.d/lxd "$root/etc/rc2.d/S02lxd"
  ln -s ../init.d/lxd-containers "$root/etc/rc2.d/S03lxd-containers"
}

"$1"
