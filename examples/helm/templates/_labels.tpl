{{- define "hasten.selector" -}}
app.kubernetes.io/name: hasten
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}
{{- define "hasten.labels" -}}
{{ include "hasten.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
