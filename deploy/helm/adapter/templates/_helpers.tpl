{{- define "adapter.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "adapter.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "adapter.labels" -}}
{{ include "adapter.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The name of what serves a runner, as a name of Kubernetes; without a runner, of what serves all others. */}}
{{- define "adapter.tritonName" -}}
{{- $suffix := "triton" }}
{{- if .runner }}{{ $suffix = printf "runner-%s" (.runner | lower | replace "_" "-" | replace "." "-" | trunc 15 | trimSuffix "-") }}{{ end }}
{{- printf "%s-%s" (include "adapter.fullname" .root) $suffix }}
{{- end }}

{{- define "adapter.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "adapter.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* A preference to stand on several nodes and in several zones. */}}
{{- define "adapter.spread" -}}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- $.labels | nindent 6 }}
{{- end }}
{{- end }}

{{- /* The volume of the model repository, and the init container that fills it where it is a copy. */}}
{{- define "adapter.repositoryVolume" -}}
- name: models
  {{- if .Values.repository.volumeClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.repository.volumeClaim }}
    readOnly: true
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.repository.sizeLimit }}}
  {{- end }}
{{- end }}

{{- define "adapter.repositoryMount" -}}
- name: models
  mountPath: /models
  readOnly: true
  {{- if .Values.repository.volumeClaim }}
  subPath: {{ .Values.repository.subPath | quote }}
  {{- end }}
{{- end }}

{{- define "adapter.repositoryInit" -}}
{{- $r := .root.Values.repository }}
{{- if not $r.volumeClaim }}
- name: repository
  {{- if $r.url }}
  image: {{ .root.Values.images.front.name | quote }}
  imagePullPolicy: {{ .root.Values.images.front.pullPolicy }}
  command: [python, /etc/adapter/fetch.py, {{ $r.url | quote }}, /models, {{ .what }}]
  {{- with $r.secretName }}
  envFrom:
    - secretRef: {name: {{ . }}}
  {{- end }}
  {{- else }}
  image: {{ .root.Values.images.triton.name | quote }}
  imagePullPolicy: {{ .root.Values.images.triton.pullPolicy }}
  command: [adapter, export, {{ .root.Values.service | quote }}, --repository, /models{{ range $r.exportArgs }}, {{ . | quote }}{{ end }}]
  {{- end }}
  securityContext:
    {{- include "adapter.containerSecurity" . | nindent 4 }}
  resources:
    {{- .resources | toYaml | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
    - {name: scripts, mountPath: /etc/adapter, readOnly: true}
{{- end }}
{{- end }}

{{- /* What is wrong with values in a way that a schema cannot say. */}}
{{- define "adapter.check" -}}
{{- if and .Values.repository.volumeClaim .Values.repository.url }}
{{- fail "repository.volumeClaim and repository.url are both set: the repository is in one place." }}
{{- end }}
{{- if and .Values.tritonTLS.clientSecretName (not .Values.tritonTLS.secretName) }}
{{- fail "tritonTLS.clientSecretName is set without tritonTLS.secretName: Triton needs a certificate as well." }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}
{{- fail "ingress.enabled is set without ingress.host." }}
{{- end }}
{{- $names := dict }}
{{- range $runner := keys .Values.runners | sortAlpha }}
{{- $name := include "adapter.tritonName" (dict "root" $ "runner" $runner) }}
{{- if hasKey $names $name }}
{{- fail (printf "The runners %q and %q would both be called %s in Kubernetes: give one another name." (get $names $name) $runner $name) }}
{{- end }}
{{- $_ := set $names $name $runner }}
{{- end }}
{{- end }}
