{{- define "sbc.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sbc.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "sbc.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sbc.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sbc.selector" -}}
app.kubernetes.io/name: {{ include "sbc.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sbc.labels" -}}
{{ include "sbc.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sbc.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sbc.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sbc.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "sbc.joinSecret" -}}
{{- default (printf "%s-join" (include "sbc.fullname" .)) .Values.cluster.existingSecret -}}
{{- end -}}

{{/* Whether the API is of a release of Kubernetes or newer: (list . "1.27"). */}}
{{- define "sbc.since" -}}
{{- $root := index . 0 -}}
{{- if semverCompare (printf ">=%s-0" (index . 1)) $root.Capabilities.KubeVersion.Version -}}true{{- end -}}
{{- end -}}

{{/* Whether calls of more than one pod are kept together. */}}
{{- define "sbc.clustered" -}}
{{- if gt (int .Values.replicas) 1 -}}true{{- end -}}
{{- end -}}

{{/* Which of the node's addresses an init step must look up: "external", "annotation" or nothing. */}}
{{- define "sbc.lookups" -}}
{{- range .Values.interfaces -}}
{{- $from := default "bind" (default dict .advertise).from -}}
{{- if or (eq $from "nodeExternal") (eq $from "nodeAnnotation") -}}{{ .name }} {{ end -}}
{{- end -}}
{{- end -}}

{{/* An address as it stands before a port. */}}
{{- define "sbc.bracketed" -}}
{{- if eq .family "IPv6" -}}[{{ .address }}]{{- else -}}{{ .address }}{{- end -}}
{{- end -}}

{{/* Where an interface listens, as the configuration fills it in. */}}
{{- define "sbc.bind" -}}
{{- $bind := default "pod" .interface.bind -}}
{{- if eq $bind "pod" -}}
${POD_IP}
{{- else if hasPrefix "device:" $bind -}}
{{- if eq .family "IPv6" -}}${device6:{{ trimPrefix "device:" $bind }}}{{- else -}}${ {{- $bind -}} }{{- end -}}
{{- else -}}
{{ $bind }}
{{- end -}}
{{- end -}}

{{/* What an interface advertises; empty where it is what it listens on. */}}
{{- define "sbc.advertise" -}}
{{- $advertise := default dict .interface.advertise -}}
{{- $from := default "bind" $advertise.from -}}
{{- if eq $from "pod" -}}
${POD_IP}
{{- else if eq $from "node" -}}
${NODE_IP}
{{- else if or (eq $from "nodeExternal") (eq $from "nodeAnnotation") -}}
${file:/run/sbc/address-{{ .interface.name }}}
{{- else if eq $from "list" -}}
${ADVERTISE_{{ .index }}[ordinal]}
{{- else if eq $from "literal" -}}
{{ required (printf "interface %s: advertise.value is needed with from: literal" .interface.name) $advertise.value }}
{{- end -}}
{{- end -}}

{{- define "sbc.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What is wrong with the values beyond what their schema can say. */}}
{{- define "sbc.check" -}}
{{- $mode := .Values.network.mode -}}
{{- if and (eq .Values.cluster.failover "address") (eq $mode "pod") -}}
{{- fail "cluster.failover: address needs network.mode hostNetwork or multus: pod addresses cannot move" -}}
{{- end -}}
{{- if ne (eq .Values.cluster.failover "address") (gt (len .Values.cluster.addresses) 0) -}}
{{- fail "cluster.failover: address and cluster.addresses go together" -}}
{{- end -}}
{{- if and (gt (int .Values.replicas) 1) (eq (mod (int .Values.replicas) 2) 0) -}}
{{- fail (printf "replicas: %d survive no more failures than %d: use an odd number" (int .Values.replicas) (sub (int .Values.replicas) 1)) -}}
{{- end -}}
{{- range .Values.interfaces -}}
{{- if and .network (ne $mode "multus") -}}
{{- fail (printf "interface %s: network needs network.mode multus" .name) -}}
{{- end -}}
{{- if and (hasPrefix "device:" (default "pod" .bind)) (eq $mode "pod") -}}
{{- fail (printf "interface %s: in network.mode pod there is no device but the pod's own: bind: pod" .name) -}}
{{- end -}}
{{- $advertise := default dict .advertise -}}
{{- if and (eq (default "bind" $advertise.from) "list") (lt (len (default list $advertise.list)) (int $.Values.replicas)) -}}
{{- fail (printf "interface %s: advertise.list has fewer entries than there are replicas" .name) -}}
{{- end -}}
{{- end -}}
{{- range $section := list "node" "cluster" "admin" "metrics" "cdr" "log" "trace" "hep" -}}
{{- if regexMatch (printf "(?m)^\\s*\\[%s[].]" $section) $.Values.config -}}
{{- fail (printf "config: [%s] is written by the chart; use its values" $section) -}}
{{- end -}}
{{- end -}}
{{- end -}}
