#!/usr/bin/env bash
# Make the secrets of a compose deployment, once: what is there is kept. One file each, in .secrets or MARTLET_SECRETS_DIR.
#
# The directory is its owner's alone. The files can be read by everyone inside, because containers see the files and not
# the directory, and run as another user than you.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=${MARTLET_SECRETS_DIR:-.secrets}

mkdir -p "$directory"
chmod 700 "$directory"

# random BYTES: hexadecimal digits, which need no quoting anywhere.
random() { od -An -v -tx1 -N "$1" /dev/urandom | tr -d ' \n'; }

# keep NAME VALUE: write a secret unless it is there.
keep() {
  [ ! -s "$directory/$1" ] || return 0
  (umask 022 && printf '%s\n' "$2" >"$directory/.$1.new")
  mv "$directory/.$1.new" "$directory/$1"
  echo "made $directory/$1"
}

keep valkey_password "$(random 32)"
keep redis_url "redis://:$(cat "$directory/valkey_password")@valkey:6379/0"
keep s3_access_key "$(random 10)"
keep s3_secret_key "$(random 32)"
keep internal_token "$(random 32)"
keep api_key "mk-$(head -c 32 /dev/urandom | base64 -w 0 | tr '+/' '-_' | tr -d '=')"
keep grafana_password "$(random 16)"
