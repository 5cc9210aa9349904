{{/* What the schema can't say. Every message names the value and the remedy. */}}
{{- define "martlet.checks" -}}
{{- $values := .Values -}}
{{- $secrets := $values.secrets -}}
{{- if not $values.objectStore.endpoint -}}
{{- fail "objectStore.endpoint is empty: give the URL of an S3 endpoint, such as https://s3.example.org" -}}
{{- end -}}
{{- if not $secrets.existingSecret -}}
{{- $needed := list "internalToken" "s3AccessKey" "s3SecretKey" "firstApiKey" (ternary "valkeyPassword" "redisUrl" $values.valkey.enabled) -}}
{{- range $needed -}}
{{- if not (get $secrets .) -}}
{{- fail (printf "secrets.%s is empty: there are no default passwords. Set it, or make a secret with all keys and name it in secrets.existingSecret" .) -}}
{{- end -}}
{{- end -}}
{{- if and $values.valkey.enabled $secrets.redisUrl -}}
{{- fail "secrets.redisUrl is set and valkey.enabled is true: a deployment has one job store. Set valkey.enabled to false, or leave secrets.redisUrl empty" -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- $models := list -}}
{{- range $values.inference.pools -}}
{{- if has .name $names -}}{{- fail (printf "inference.pools: the name %s is there twice" .name) -}}{{- end -}}
{{- if and $values.keda.enabled (has .model $models) -}}
{{- fail (printf "inference.pools: the model %s is there twice, and KEDA scales pools by their model. Make one pool of them, or set keda.enabled to false" .model) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- $models = append $models .model -}}
{{- end -}}
{{- $families := list -}}
{{- range $values.quantizer.workers -}}
{{- if has .name $families -}}{{- fail (printf "quantizer.workers: the family %s is there twice" .name) -}}{{- end -}}
{{- $families = append $families .name -}}
{{- end -}}
{{- if and $values.keda.enabled (eq $values.keda.trigger "prometheus") (not $values.keda.prometheusAddress) -}}
{{- fail "keda.prometheusAddress is empty: the trigger prometheus needs it" -}}
{{- end -}}
{{- if and $values.gateway.ingress.enabled (not $values.gateway.ingress.host) -}}
{{- fail "gateway.ingress.host is empty: name the host that clients use" -}}
{{- end -}}
{{- end -}}
