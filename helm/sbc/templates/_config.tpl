{{- define "sbc.toml" -}}
# Written by the chart.
[node]
drain-time = "{{ int .Values.drain.hangupAfterSeconds }}s"

[admin]
socket = "/run/sbc/admin.sock"

[metrics]
listen = "{{ include "sbc.bracketed" (dict "family" .Values.ipFamily "address" "${POD_IP}") }}:{{ int .Values.metrics.port }}"

[log]
level = {{ .Values.log.level | quote }}
format = {{ .Values.log.format | quote }}
{{- if .Values.cdr.enabled }}

[cdr]
file = {{ .Values.cdr.file | quote }}
{{- end }}
{{- if not .Values.kernelMedia.enabled }}

[media]
kernel = "off"
{{- end }}
{{- if .Values.tracing.endpoint }}

[trace]
endpoint = {{ .Values.tracing.endpoint | quote }}
{{- with .Values.tracing.ca }}
ca = {{ . | quote }}
{{- end }}
sample = {{ printf "%.6f" (float64 .Values.tracing.sample) }}
{{- end }}
{{- if .Values.hep.collector }}

[hep]
collector = {{ .Values.hep.collector | quote }}
transport = {{ .Values.hep.transport | quote }}
sample = {{ printf "%.6f" (float64 .Values.hep.sample) }}
capture-id = {{ int .Values.hep.captureId }}
{{- end }}
{{- range $index, $interface := .Values.interfaces }}
{{- $where := dict "interface" $interface "index" $index "family" $.Values.ipFamily }}
{{- $bind := include "sbc.bind" $where }}
{{- $advertise := include "sbc.advertise" $where }}

[[interface]]
name = {{ .name | quote }}
{{- with .realm }}
realm = {{ . | quote }}
{{- end }}
listen = [
{{- range .listen }}
{{- $parts := splitList ":" . }}
  "{{ index $parts 0 }}://{{ include "sbc.bracketed" (dict "family" $.Values.ipFamily "address" $bind) }}:{{ index $parts 1 }}",
{{- end }}
]
{{- with $advertise }}
advertise = {{ . | quote }}
{{- end }}
{{- with .media }}
media = { ports = {{ .ports | quote }} }
{{- end }}
{{- end }}

[cluster]
data = "/var/lib/sbc/cluster"
{{- if include "sbc.clustered" . }}
listen = "{{ if eq .Values.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end }}:{{ int .Values.cluster.port }}"
advertise = "${POD_NAME}.{{ include "sbc.fullname" . }}-peers.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}"
failover = {{ .Values.cluster.failover | quote }}
on-quorum-loss = {{ .Values.cluster.onQuorumLoss | quote }}
{{- range .Values.cluster.addresses }}

[[cluster.address]]
address = {{ .address | quote }}
device = {{ .device | quote }}
group = {{ int (default 1 .group) }}
{{- end }}

[cluster.join]
key-file = "/etc/sbc/join/join-key"
begin = {{ int .Values.replicas }}
dns = "{{ include "sbc.fullname" . }}-peers.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}"
{{- end }}

# From the values.
{{ .Values.config }}
{{- end -}}
