#!/usr/bin/env bash
# Back up everything a compose deployment must not lose: the object store, the job store and the secrets.
#
#   scripts/backup.sh DIRECTORY
#
# The deployment is stopped while its stores are copied, so that they are of one moment, and started again; running jobs
# write a checkpoint and go on. Which deployment: as `docker compose` takes it, from .env, COMPOSE_FILE and
# COMPOSE_PROJECT_NAME. Stores of your own (S3_ENDPOINT, redis_url) are not in it. The directory holds secrets: keep it so.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
secrets=${MARTLET_SECRETS_DIR:-.secrets}

[ -z "$(ls -A "$directory")" ] || { echo "error: $directory isn't empty; name a new directory" >&2; exit 1; }
chmod 700 "$directory"
umask 077

mapfile -t running < <(docker compose ps --services --status running)
start_again() {
  if [ ${#running[@]} -gt 0 ]; then
    echo "starting again"
    docker compose start "${running[@]}"
    running=()
  fi
}
trap start_again EXIT
if [ ${#running[@]} -gt 0 ]; then
  echo "stopping ${#running[@]} services"
  docker compose stop
fi
echo "copying the stores"
docker compose run --rm --no-deps -T --entrypoint tar volumes -C /var/lib/martlet -czf - objects jobs >"$directory/stores.tar.gz"
tar -C "$secrets" -czf "$directory/secrets.tar.gz" .
(cd "$directory" && sha256sum stores.tar.gz secrets.tar.gz >SHA256SUMS)
start_again
echo "backed up to $directory: $(du -sh "$directory" | cut -f 1)"
