#!/usr/bin/env bash
# Restore what scripts/backup.sh wrote, into a deployment that holds nothing yet.
#
#   scripts/restore.sh DIRECTORY
#
# Afterwards: `docker compose up --wait`. Base models are fetched again. Nothing that is there is overwritten: where the
# stores hold data, or secrets are others, it refuses (`docker compose down --volumes` empties the stores).
set -euo pipefail
[ $# = 1 ] && [ -d "$1" ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
directory=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
secrets=${MARTLET_SECRETS_DIR:-.secrets}
fail() { echo "error: $1" >&2; exit 1; }

(cd "$directory" && sha256sum --quiet --check SHA256SUMS) || fail "the backup in $directory is damaged"
[ -z "$(docker compose ps --services --status running)" ] || fail "the deployment runs; stop it: docker compose down"

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
tar -C "$fresh" -xzf "$directory/secrets.tar.gz"
if [ -d "$secrets" ]; then
  diff -rq "$fresh" "$secrets" >/dev/null || fail "$secrets holds other secrets than the backup; move it away first"
else
  mkdir -p "$(dirname "$secrets")"
  cp -a "$fresh" "$secrets"
  chmod 700 "$secrets"
fi

in_volumes() { docker compose run --rm --no-deps -T --entrypoint "$1" volumes "${@:2}"; }
# .martlet is the image's own mark: see the service `volumes`.
found=$(in_volumes find /var/lib/martlet/objects /var/lib/martlet/jobs -mindepth 1 -not -name .martlet -print -quit </dev/null)
[ -z "$found" ] || fail "the stores hold data already ($found)"
in_volumes tar -C /var/lib/martlet -xzf - <"$directory/stores.tar.gz"
echo "restored; start it with: docker compose up --wait"
