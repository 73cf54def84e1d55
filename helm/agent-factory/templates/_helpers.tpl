{{- define "af.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Labels of everything. */}}
{{- define "af.labels" -}}
app.kubernetes.io/name: agent-factory
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What selects pods: (dict "root" $ "component" "gateway" "colour" "blue"); colour may be left out. */}}
{{- define "af.selector" -}}
app.kubernetes.io/name: agent-factory
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .colour }}
agentfactory.dev/colour: {{ . }}
{{- end }}
{{- end }}

{{- define "af.image" -}}
{{ .root.Values.image.repository }}/{{ .image }}:{{ .tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* Version of a colour's images. */}}
{{- define "af.tag" -}}
{{ (index .root.Values.colours .colour).tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "af.idle" -}}
{{ ternary "green" "blue" (eq .Values.active "blue") }}
{{- end }}

{{/* When the colour that serves was changed to, as RFC 3339; empty before the first change. */}}
{{- define "af.activeSince" -}}
{{- $service := lookup "v1" "Service" .Release.Namespace (printf "%s-control-plane" (include "af.name" .)) | default dict -}}
{{- $served := dig "spec" "selector" "agentfactory.dev/colour" "" $service -}}
{{- if and .Release.IsUpgrade $served (ne $served .Values.active) -}}
{{- now | date "2006-01-02T15:04:05Z07:00" -}}
{{- else -}}
{{- dig "metadata" "annotations" "agentfactory.dev/active-since" "" $service -}}
{{- end -}}
{{- end }}

{{/* The newest version that is enabled migrates: that of the idle colour when it runs, which is what comes next. */}}
{{- define "af.newestTag" -}}
{{- $idle := include "af.idle" . -}}
{{- $colour := ternary $idle .Values.active (index .Values.colours $idle).enabled -}}
{{- $one := include "af.tag" (dict "root" . "colour" .Values.active) -}}
{{- $other := include "af.tag" (dict "root" . "colour" $colour) -}}
{{- if and (regexMatch "^v?[0-9]+\\.[0-9]+\\.[0-9]+" $one) (regexMatch "^v?[0-9]+\\.[0-9]+\\.[0-9]+" $other) -}}
{{- ternary $one $other (semverCompare (printf ">=%s-0" (trimPrefix "v" $other)) (trimPrefix "v" $one)) -}}
{{- else -}}
{{- $other -}}
{{- end -}}
{{- end }}

{{/* Pod Security "restricted". */}}
{{- define "af.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "af.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "af.spread" -}}
topologySpreadConstraints:
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: {{ $.root.Values.maxSkew }}
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "af.selector" $ | nindent 8 }}
{{- end }}
{{- end }}

{{- define "af.probes" -}}
startupProbe: {httpGet: {path: /readyz, port: admin}, periodSeconds: 1, failureThreshold: 60}
readinessProbe: {httpGet: {path: /readyz, port: admin}, periodSeconds: 2, failureThreshold: 2}
livenessProbe: {httpGet: {path: /healthz, port: admin}, periodSeconds: 10, failureThreshold: 3}
{{- end }}

{{/* Kubernetes shows secrets as links that all of a group may read; keys have to be files of their owner alone. From the
volume `from` into the volume `into`. */}}
{{- define "af.keysInit" -}}
- name: keys
  image: {{ include "af.image" (dict "root" .root "image" "tools" "tag" .tag) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [place-keys.sh, /etc/agentfactory, {{ .to }}]
  securityContext: {{- include "af.containerSecurity" . | nindent 4 }}
  resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
  volumeMounts:
    - {name: {{ .from | default "handed" }}, mountPath: /etc/agentfactory, readOnly: true}
    - {name: {{ .into | default "data" }}, mountPath: {{ .to }}}
{{- end }}

{{- define "af.settings" -}}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "af.databaseUrl" -}}
postgresql://{{ .role }}@{{ .root.Values.database.host }}:{{ .root.Values.database.port }}/{{ .root.Values.database.name }}
{{- end }}
