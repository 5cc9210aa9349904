#!/usr/bin/env bash
# A Docker engine, `docker compose` v2, buildx and a base image for the compose test, on a bare Debian 12 machine, with
# nothing but Debian packages: no container registry is needed. Run it as root.
#
#   tests/e2e/docker-up.sh [up]     install what is missing, start the engine, make the base image; what is there is kept
#   tests/e2e/docker-up.sh status   what runs
#   tests/e2e/docker-up.sh down     stop the engine that `up` started, and put the network settings back
#
# An engine that answers already is used as it is, and `down` leaves it alone. Engine and plugins are Debian 13's, unpacked
# beside the system (they need glibc 2.34; Debian 12 has 2.36), since Debian 12 has no compose v2. The base image holds the
# machine's own certificates and package sources: it is for tests here, never to be pushed.
set -euo pipefail

BASE_IMAGE=${BASE_IMAGE:-python:3.11-slim-bookworm}
STATE=${DOCKER_UP_STATE:-/var/lib/martlet-docker}
UNPACKED=$STATE/debian13
PLUGINS=/usr/local/lib/docker/cli-plugins
LOG=$STATE/dockerd.log
unset DOCKER_HOST DOCKER_CONTEXT
export DEBIAN_FRONTEND=noninteractive

say() { printf 'docker-up: %s (%d s)\n' "$1" "$SECONDS"; }
fail() { printf 'docker-up: %s\n' "$1" >&2; exit 1; }
engine_answers() { docker version >/dev/null 2>&1; }

system_packages() {
  local missing=() name
  for name in runc tini iptables iproute2 procps ca-certificates mmdebstrap; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$STATE/apt.log" 2>&1 ||
    { tail -n 20 "$STATE/apt.log" >&2; fail "apt-get install failed"; }
}

# The mirror this machine uses; it is read, never written down here.
mirror() {
  local found
  found=$(sed -nE 's/^URIs: *([^ ]+).*/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
  [ -n "$found" ] || found=$(sed -nE 's/^deb +(\[[^]]*\] +)?([^ ]+) +bookworm .*/\2/p' /etc/apt/sources.list 2>/dev/null | head -n 1)
  [ -n "$found" ] || fail "no Debian mirror is configured in /etc/apt"
  echo "$found"
}

unpack_engine() {
  local wanted=() scratch options name
  [ -x "$UNPACKED/usr/sbin/dockerd" ] || wanted+=(docker.io containerd)
  [ -x "$UNPACKED/usr/libexec/docker/cli-plugins/docker-compose" ] || wanted+=(docker-compose)
  [ -x "$UNPACKED/usr/libexec/docker/cli-plugins/docker-buildx" ] || wanted+=(docker-buildx)
  [ -x "$UNPACKED/usr/bin/docker" ] || command -v docker >/dev/null || wanted+=(docker-cli)
  if [ ${#wanted[@]} -gt 0 ]; then
    say "unpacking ${wanted[*]} of Debian 13"
    # apt with lists of its own, so that the system's stay as they are; signatures are checked as ever.
    scratch=$(mktemp -d "$STATE/apt.XXXXXX")
    mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/debs" "$UNPACKED"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) trixie main" >"$scratch/sources.list"
    options=(-o "Dir::Etc::sourcelist=$scratch/sources.list" -o Dir::Etc::sourceparts=/dev/null
      -o "Dir::State::lists=$scratch/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update -qq
    (cd "$scratch/debs" && apt-get "${options[@]}" download -qq "${wanted[@]}")
    for name in "$scratch"/debs/*.deb; do dpkg-deb -x "$name" "$UNPACKED"; done
    rm -rf "$scratch"
  fi
  mkdir -p "$PLUGINS"
  ln -sfn /usr/bin/tini-static "$UNPACKED/usr/bin/docker-init" # for `init: true`; the package links to a path that isn't here
  local plugin
  for plugin in docker-compose docker-buildx; do
    [ -e "$PLUGINS/$plugin" ] || ln -sfn "$UNPACKED/usr/libexec/docker/cli-plugins/$plugin" "$PLUGINS/$plugin"
  done
  command -v docker >/dev/null || ln -sfn "$UNPACKED/usr/bin/docker" /usr/local/bin/docker
}

start_engine() {
  engine_answers && return 0
  local device mtu
  mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
  # What the engine changes, as it was.
  cat /proc/sys/net/ipv4/ip_forward >"$STATE/ip_forward"
  iptables -S FORWARD | awk '$1 == "-P" { print $3 }' >"$STATE/forward_policy"
  if [ -s /var/run/docker.pid ] && [ ! -d "/proc/$(cat /var/run/docker.pid)" ]; then rm -f /var/run/docker.pid; fi
  device=$(ip -o route show default | awk '{ print $5; exit }')
  mtu=$(cat "/sys/class/net/${device:-lo}/mtu")
  say "starting the engine"
  PATH=$UNPACKED/usr/sbin:$UNPACKED/usr/bin:$PATH setsid nohup dockerd --data-root "$STATE/data" \
    --mtu "$((mtu > 1500 ? 1500 : mtu))" >>"$LOG" 2>&1 </dev/null &
  local tries
  for tries in $(seq 120); do
    engine_answers && break
    sleep 0.25
  done
  engine_answers || { tail -n 20 "$LOG" >&2; fail "the engine didn't come up after $tries tries; its log is $LOG"; }
  cp /var/run/docker.pid "$STATE/dockerd.pid"
}

# Laid out as the official image: `python` and `pip` in /usr/local/bin. Debian's Python 3.11, so not the same to the bit.
base_image() {
  docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 && return 0
  local archive=$STATE/base.tar sources=/etc/apt/sources.list.d/debian.sources hooks=()
  if [ ! -s "$archive" ]; then
    say "making the base image $BASE_IMAGE"
    [ -e "$sources" ] || sources=/etc/apt/sources.list
    if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
      # shellcheck disable=SC2016  # $1 is mmdebstrap's
      hooks=(--customize-hook='mkdir -p "$1/usr/local/share/ca-certificates"
        cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/"
        chroot "$1" update-ca-certificates >/dev/null 2>&1')
    fi
    # shellcheck disable=SC2016
    mmdebstrap --quiet --mode=root --variant=minbase --include=python3,python3-venv,ca-certificates \
      --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' "${hooks[@]}" \
      --customize-hook='chroot "$1" python3 -m venv /usr/local' \
      --customize-hook='printf "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" >"$1/etc/pip.conf"' \
      --customize-hook='rm -rf "$1"/tmp/* "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/archives/*.deb "$1"/var/log/apt' \
      bookworm "${archive%.tar}.new.tar" "$sources" >"$STATE/mmdebstrap.log" 2>&1 ||
      { tail -n 20 "$STATE/mmdebstrap.log" >&2; fail "mmdebstrap failed"; }
    mv "${archive%.tar}.new.tar" "$archive"
  fi
  docker import --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' --change 'CMD ["python3"]' "$archive" "$BASE_IMAGE" >/dev/null
}

down() {
  local pid table chain bridge
  [ -s "$STATE/dockerd.pid" ] || { say "no engine of ours runs"; return 0; }
  pid=$(cat "$STATE/dockerd.pid")
  if [ "$(basename "$(readlink "/proc/$pid/exe" 2>/dev/null || true)")" = dockerd ]; then
    kill "$pid"
    for _ in $(seq 240); do
      [ -d "/proc/$pid" ] || break
      sleep 0.25
    done
    [ ! -d "/proc/$pid" ] || fail "the engine (pid $pid) doesn't end"
  fi
  rm -f "$STATE/dockerd.pid"
  # The engine leaves its rules, chains and bridges behind.
  for table in "iptables -t filter" "iptables -t nat" "ip6tables -t filter" "ip6tables -t nat"; do
    for _ in 1 2; do # rules first, then the chains that they named
      { $table -S 2>/dev/null || true; } | grep -E '^-A.*(DOCKER|docker0|br-[0-9a-f]{12}|-s 172\.(1[7-9]|2[0-9]|3[01])\.)' |
        sed 's/^-A/-D/' | while read -r rule; do eval "$table $rule" 2>/dev/null || true; done || true
      { $table -S 2>/dev/null || true; } | awk '$1 == "-N" && $2 ~ /^DOCKER/ { print $2 }' |
        while read -r chain; do $table -X "$chain" 2>/dev/null || true; done || true
    done
  done
  iptables -P FORWARD "$(cat "$STATE/forward_policy")"
  sysctl -qw "net.ipv4.ip_forward=$(cat "$STATE/ip_forward")"
  for bridge in $(ip -o link show type bridge | sed -nE 's/^[0-9]+: (br-[0-9a-f]{12}|docker0)[:@].*/\1/p'); do
    ip link del "$bridge" || true
  done
  umount /run/docker/netns/default 2>/dev/null || true
  say "stopped"
}

[ "$(id -u)" = 0 ] || fail "must be run as root"
mkdir -p "$STATE"
case ${1:-up} in
  up)
    if ! engine_answers || ! docker compose version >/dev/null 2>&1 || ! docker buildx version >/dev/null 2>&1; then
      system_packages
      unpack_engine
    fi
    start_engine
    docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 || { system_packages; base_image; }
    say "engine $(docker version -f '{{.Server.Version}}'), compose $(docker compose version --short), $(docker buildx version | awk '{ print $1, $2 }'), base image $BASE_IMAGE"
    ;;
  status)
    if engine_answers; then docker info 2>/dev/null | grep -E 'Server Version|Storage Driver|Cgroup V'; else echo "no engine runs"; fi
    docker compose version 2>/dev/null || echo "no compose plugin"
    if engine_answers; then docker images; fi
    ;;
  down) down ;;
  *) fail "usage: $0 [up|status|down]" ;;
esac
