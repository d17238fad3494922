{{- define "semipd-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* With room for a suffix in a label's 63 characters. */}}
{{- define "semipd-operator.shortName" -}}
{{- include "semipd-operator.name" . | trunc 56 | trimSuffix "-" }}
{{- end }}

{{- /* A Service bears it, so it has no dots; a release may. */}}
{{- define "semipd-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- $name := include "semipd-operator.name" . }}
{{- $release := .Release.Name | replace "." "-" }}
{{- if contains $name $release }}
{{- $release | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" $release $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "semipd-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "semipd-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "semipd-operator.labels" -}}
{{ include "semipd-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: semipd
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{- end }}

{{- define "semipd-operator.podLabels" -}}
{{- $own := include "semipd-operator.selectorLabels" . | fromYaml }}
{{- range $name, $_ := .Values.podLabels }}
{{- if hasKey $own $name }}
{{- fail (printf "podLabels: %s is the chart's own, by which the Deployment finds its pods; choose another label" $name) }}
{{- end }}
{{- end }}
{{- toYaml (merge (dict) (.Values.podLabels | default dict) (include "semipd-operator.labels" . | fromYaml)) }}
{{- end }}

{{- define "semipd-operator.serviceAccountName" -}}
{{- default (include "semipd-operator.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "semipd-operator.keySecret" -}}
{{- default (printf "%s-key" (include "semipd-operator.fullname" .)) .Values.key.existingSecret }}
{{- end }}

{{- define "semipd-operator.image" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) }}
{{- end }}
{{- end }}

{{- define "semipd-operator.apiService" -}}
v1beta1.external.metrics.k8s.io
{{- end }}

{{- define "semipd-operator.metricsApiName" -}}
{{- printf "%s-metrics-api" (include "semipd-operator.fullname" . | trunc 51 | trimSuffix "-") }}
{{- end }}

{{- /* What the operator may do where the services are. It reads no Secret. */}}
{{- define "semipd-operator.rules" -}}
- apiGroups: [semipd.io]
  resources: [semipdservices]
  verbs: [list, watch]
- apiGroups: [semipd.io]
  resources: [semipdservices/status]
  verbs: [patch]
- apiGroups: [semipd.io]
  resources: [semipdservices/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  # list: the kubelet tells in events alone why it cannot make a pod (a missing Secret, a volume on another node).
  verbs: [create, list]
{{- if .Values.rbac.scaledObjects }}
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, create, patch, delete]
{{- end }}
{{- if .Values.rbac.podMonitors }}
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, create, patch, delete]
{{- end }}
{{- end }}

{{- /* "true" where pods may not name their user. */}}
{{- define "semipd-operator.openshift" -}}
{{- if eq (toString .Values.openshift) "auto" }}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}true{{ end }}
{{- else if .Values.openshift }}true{{ end }}
{{- end }}

{{- /* The user of the image (images/Containerfile), in the restricted profile. */}}
{{- define "semipd-operator.podSecurity" -}}
{{- $user := 10001 }}
{{- $own := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- if not (include "semipd-operator.openshift" .) }}
{{- $own = merge $own (dict "runAsUser" $user "runAsGroup" $user "fsGroup" $user) }}
{{- end }}
{{- toYaml (mergeOverwrite $own (.Values.podSecurityContext | default dict)) }}
{{- end }}

{{- define "semipd-operator.containerSecurity" -}}
{{- $own := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) }}
{{- toYaml (mergeOverwrite $own (.Values.securityContext | default dict)) }}
{{- end }}
