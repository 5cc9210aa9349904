{{/*
A Deployment, and its PodDisruptionBudget. Arguments: those of martlet.podTemplate, and
  replicas       how many; nil where something else scales it
  strategy       of the update, as a map; may be nil
*/}}
{{- define "martlet.deployment" -}}
{{- $name := include "martlet.workloadName" . -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "martlet.labels" . | nindent 4 }}
spec:
  {{- if kindIs "invalid" .replicas | not }}
  replicas: {{ .replicas }}
  {{- end }}
  {{- with .strategy }}
  strategy: {{ toJson . }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "martlet.selector" . | nindent 6 }}
  template:
    {{- include "martlet.podTemplate" . | nindent 4 }}
{{- if .root.Values.podDisruptionBudgets.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels:
    {{- include "martlet.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "martlet.selector" . | nindent 6 }}
{{- end }}
{{- end -}}

{{- define "martlet.workloadName" -}}
{{ include "martlet.fullname" .root }}-{{ .component }}{{ with .part }}-{{ . }}{{ end }}
{{- end -}}

{{/* A Service. Arguments: root, component, ports (list of {name, port}), type. */}}
{{- define "martlet.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "martlet.workloadName" . }}
  labels:
    {{- include "martlet.labels" . | nindent 4 }}
spec:
  type: {{ .type | default "ClusterIP" }}
  selector:
    {{- include "martlet.selector" . | nindent 4 }}
  ports:
    {{- range .ports }}
    - {name: {{ .name }}, port: {{ .port }}, targetPort: {{ .name }}, protocol: TCP{{ with .appProtocol }}, appProtocol: {{ . }}{{ end }}}
    {{- end }}
{{- end -}}

{{/* Probes of a gRPC server by the standard health service. Arguments: port, startSeconds, engine (a model may be swapped: not serving is no illness). */}}
{{- define "martlet.grpcProbes" -}}
startupProbe:
  grpc: {port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ div (int .startSeconds) 5 }}
readinessProbe:
  grpc: {port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  {{- if .engine }}
  tcpSocket: {port: {{ .port }}}
  {{- else }}
  grpc: {port: {{ .port }}}
  {{- end }}
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 4
{{- end -}}

{{/* Probes of a worker, which listens nowhere: it touches a file. */}}
{{- define "martlet.workerProbes" -}}
startupProbe:
  exec: {command: [python, -m, martlet_core.health, file, /tmp/martlet-alive, "30"]}
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: 24
livenessProbe:
  exec: {command: [python, -m, martlet_core.health, file, /tmp/martlet-alive, "30"]}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 4
{{- end -}}

{{/* KEDA scales by a number of the gateways. Arguments: root, component, part, series, labels (map), target, min, max. */}}
{{- define "martlet.scaledObject" -}}
{{- $keda := .root.Values.keda -}}
{{- $pairs := list -}}
{{- range $name, $value := .labels }}{{ $pairs = append $pairs (printf "%s=%q" $name $value) }}{{ end -}}
{{- $selector := printf "%s{%s}" .series (join "," $pairs) -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ include "martlet.workloadName" . }}
  labels:
    {{- include "martlet.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "martlet.workloadName" . }}
  pollingInterval: {{ $keda.pollingInterval }}
  cooldownPeriod: {{ $keda.cooldownPeriod }}
  minReplicaCount: {{ .min }}
  maxReplicaCount: {{ .max }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleDown:
          stabilizationWindowSeconds: {{ $keda.scaleDownSeconds }}
          policies:
            - {type: Pods, value: 1, periodSeconds: 60}
  triggers:
    {{- if eq $keda.trigger "prometheus" }}
    - type: prometheus
      metadata:
        serverAddress: {{ $keda.prometheusAddress | quote }}
        query: {{ printf "max(%s) or vector(0)" $selector | quote }}
        threshold: {{ .target | quote }}
    {{- else }}
    - type: metrics-api
      metadata:
        url: http://{{ include "martlet.fullname" .root }}-gateway.{{ .root.Release.Namespace }}.svc:8000/metrics
        format: prometheus
        valueLocation: {{ $selector | quote }}
        targetValue: {{ .target | quote }}
    {{- end }}
{{- end -}}
