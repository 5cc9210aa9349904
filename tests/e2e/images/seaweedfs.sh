#!/bin/sh
# Start SeaweedFS's S3 API on port 9000 with the key that the secrets hold; everything else listens inside only.
set -eu
umask 077
mkdir -p /data/seaweedfs
cat >/tmp/s3.json <<END
{"identities": [{"name": "martlet", "actions": ["Admin", "Read", "List", "Tagging", "Write"],
  "credentials": [{"accessKey": "$(cat /run/secrets/s3_access_key)", "secretKey": "$(cat /run/secrets/s3_secret_key)"}]}]}
END
# The only master relearns its state from the volumes; resuming it took 24 s after a kill.
exec weed -logtostderr=true server -dir=/data/seaweedfs -ip=127.0.0.1 -ip.bind=127.0.0.1 \
  -master.volumeSizeLimitMB=256 -master.telemetry=false -master.electionTimeout=1s -master.resumeState=false \
  -volume.max=0 -volume.preStopSeconds=0 -filer -s3 -s3.ip.bind=0.0.0.0 -s3.port=9000 -s3.config=/tmp/s3.json \
  -s3.port.iceberg=0 -s3.port.lance=0 -s3.iam=false -s3.autoCreateBucket=false \
  -filer.localSocket=/tmp/filer.sock -s3.localSocket=/tmp/s3.sock
