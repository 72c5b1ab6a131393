{{- define "potluck.labels" -}}
app.kubernetes.io/name: potluck
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "potluck.name" -}}
{{ printf "%s-coordinator" .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "potluck.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}
