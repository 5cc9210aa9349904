{{/*
One pod of ours. Arguments:
  root, component, part     see martlet.selector
  image, gpu                image's name; {count, resource, runtimeClassName} or nil
  variantOf                 the gpu that chooses the image's variant where it isn't the pod's own; may be missing
  args                      of the image's entry point
  environ                   variables, beside those every service has
  environFrom               secret whose keys are variables too; empty or missing: none
  more                      volumes of its own, as a list of {name, path, source}; may be missing
  secrets                   keys of the secret that it needs
  port, portName            where it listens; port 0: nowhere
  probes                    startupProbe, livenessProbe, readinessProbe as YAML
  values                    its values: resources, env, pod, scratchSize, shmSize
  grace                     terminationGracePeriodSeconds
  models                    whether it uses base models
  initContainers            as YAML; may be empty
  restartPolicy             Always unless given
*/}}
{{- define "martlet.podTemplate" -}}
{{- $values := .root.Values -}}
{{- $gpu := .gpu | default dict -}}
{{- $pod := .values.pod | default dict -}}
metadata:
  labels:
    {{- include "martlet.labels" . | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or $values.podAnnotations (not $values.secrets.existingSecret) }}
  annotations:
    {{- if not $values.secrets.existingSecret }}
    checksum/secrets: {{ toJson $values.secrets | sha256sum }}
    {{- end }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  serviceAccountName: {{ include "martlet.fullname" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .grace }}
  {{- with .restartPolicy }}
  restartPolicy: {{ . }}
  {{- end }}
  {{- with $values.images.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- if and $gpu.count $gpu.runtimeClassName }}
  runtimeClassName: {{ $gpu.runtimeClassName }}
  {{- end }}
  {{- with pick $pod "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "martlet.selector" $ | nindent 10 }}
    {{- end }}
  {{- with .initContainers }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      {{- include "martlet.container" . | nindent 6 }}
      args: {{ toJson .args }}
      {{- if .port }}
      ports:
        {{- range .ports | default (list (dict "name" .portName "port" .port)) }}
        - {name: {{ .name }}, containerPort: {{ .port }}, protocol: TCP}
        {{- end }}
      {{- end }}
      {{- with .probes }}
      {{- . | nindent 6 }}
      {{- end }}
      resources:
        {{- $limits := .values.resources.limits | default dict }}
        {{- if $gpu.count }}{{ $limits = merge (dict $gpu.resource $gpu.count) $limits }}{{ end }}
        requests: {{ toJson (.values.resources.requests | default dict) }}
        limits: {{ toJson $limits }}
  volumes:
    {{- include "martlet.volumes" . | nindent 4 }}
{{- end -}}

{{/* What every container of ours has: image, rights, variables, places. Resources, probes and arguments are the caller's. */}}
{{- define "martlet.container" -}}
{{- $values := .root.Values -}}
{{- $gpu := .gpu | default dict -}}
image: {{ include "martlet.image" (dict "root" .root "image" .image "gpu" (.variantOf | default $gpu | dig "count" 0)) }}
imagePullPolicy: {{ $values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
env:
  - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: HOME, value: /var/lib/martlet/scratch}
  {{- /* The later one wins: what the chart needs, then what the user says. */}}
  {{- $environ := dict
    "MARTLET_S3_ENDPOINT" $values.objectStore.endpoint
    "MARTLET_S3_BUCKET" $values.objectStore.bucket
    "MARTLET_S3_REGION" $values.objectStore.region
    "MARTLET_S3_PUBLIC_ENDPOINT" $values.objectStore.publicEndpoint
    "MARTLET_CACHE_DIR" "/var/lib/martlet/scratch/cache"
    "MARTLET_WORK_DIR" "/var/lib/martlet/scratch/work" }}
  {{- range $key := .secrets }}
  {{- $_ := set $environ (printf "MARTLET_%s_FILE" ($key | upper | replace "-" "_")) (printf "/run/secrets/martlet/%s" $key) }}
  {{- end }}
  {{- $environ = mergeOverwrite $environ .environ $values.env (.values.env | default dict) }}
  {{- range $name, $value := $environ }}
  - {name: {{ $name }}, value: {{ $value | toString | quote }}}
  {{- end }}
{{- with .environFrom }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
volumeMounts:
  - {name: scratch, mountPath: /var/lib/martlet/scratch}
  - {name: tmp, mountPath: /tmp}
  - {name: secrets, mountPath: /run/secrets/martlet, readOnly: true}
  {{- if .models }}
  - {name: models, mountPath: /var/lib/martlet/models}
  {{- end }}
  {{- if .values.shmSize }}
  - {name: shm, mountPath: /dev/shm}
  {{- end }}
  {{- range .more }}
  - {name: {{ .name }}, mountPath: {{ .path }}}
  {{- end }}
{{- end -}}

{{- define "martlet.volumes" -}}
- name: scratch
  emptyDir: {sizeLimit: {{ .values.scratchSize | default "5Gi" }}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: secrets
  secret:
    secretName: {{ include "martlet.secretName" .root }}
    defaultMode: 0440
    items:
      {{- range .secrets }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- if .models }}
- name: models
  {{- with .root.Values.models.existingClaim }}
  persistentVolumeClaim: {claimName: {{ . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .root.Values.models.size }}}
  {{- end }}
{{- end }}
{{- if .values.shmSize }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .values.shmSize }}}
{{- end }}
{{- range .more }}
- name: {{ .name }}
  {{- toYaml .source | nindent 2 }}
{{- end }}
{{- end -}}
