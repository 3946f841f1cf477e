{{- define "speakerlens.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "speakerlens.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "speakerlens.labels" -}}
{{ include "speakerlens.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "speakerlens.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag }}{{ end }}
{{- end }}

{{/* 40 requests of 31 MiB took 110 MB each: a held byte may need four of memory. */}}
{{- define "speakerlens.memory" -}}
{{ add .Values.resources.modelsMiB (mul 4 .Values.server.maxHeldMiB) }}Mi
{{- end }}

{{- define "speakerlens.args" -}}
- --bundles={{ .bundles }}
- --host=0.0.0.0
- --port=50051
- --metrics-host=0.0.0.0
- --metrics-port=8000
- --log-format=json
- --log-level={{ .Values.server.logLevel }}
- --device={{ .Values.server.device }}
- --threads={{ .Values.server.threads }}
- --watch={{ .Values.server.watchSeconds }}
- --max-held-bytes={{ mul .Values.server.maxHeldMiB 1048576 }}
- --lame-duck-seconds={{ .Values.server.lameDuckSeconds }}
- --drain-seconds={{ .Values.server.drainSeconds }}
{{- with .Values.speakers.address }}
- --speakers={{ . }}
{{- end }}
{{- if .Values.tls.secretName }}
- --tls-certificate=/etc/speakerlens/tls/tls.crt
- --tls-key=/etc/speakerlens/tls/tls.key
{{- if .Values.tls.clientCa }}
- --tls-client-ca=/etc/speakerlens/tls/ca.crt
{{- end }}
{{- end }}
{{- if .Values.tokens.secretName }}
- --tokens=/etc/speakerlens/tokens/tokens
{{- end }}
{{- with .Values.server.traceEndpoint }}
- --trace-endpoint={{ . }}
{{- end }}
{{- range .Values.server.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "speakerlens.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "speakerlens.resources" -}}
requests:
  cpu: {{ .Values.resources.cpu | quote }}
  memory: {{ include "speakerlens.memory" . }}
limits:
  memory: {{ include "speakerlens.memory" . }}
{{- with .Values.resources.extra }}
{{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every server has, however its bundles get there. */}}
{{- define "speakerlens.env" -}}
{{- with .Values.speakers.passwordSecretName }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: PGPASSWORD}
{{- end }}
{{- with .Values.server.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "speakerlens.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.tls.secretName }}
- {name: tls, mountPath: /etc/speakerlens/tls, readOnly: true}
{{- end }}
{{- if .Values.tokens.secretName }}
- {name: tokens, mountPath: /etc/speakerlens/tokens, readOnly: true}
{{- end }}
{{- end }}

{{- define "speakerlens.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- with .Values.tls.secretName }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.tokens.secretName }}
- name: tokens
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "speakerlens.deviceQuery" -}}
sum by (namespace, pod) (rate(speakerlens_batch_duration_seconds_sum{{ . }}[1m])) / sum by (namespace, pod) (speakerlens_engine_instances{{ . }})
{{- end }}
