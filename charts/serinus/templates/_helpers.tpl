{{/* What the names of all objects begin with. Not the release's name: the texts of conditions
     name these objects, and there is one install of a namespace anyway, because operators
     compete for one Lease. */}}
{{- define "serinus.prefix" -}}
{{- .Values.fullnameOverride | default "serinus" -}}
{{- end -}}

{{- define "serinus.operator" -}}{{ include "serinus.prefix" . }}-operator{{- end -}}
{{- define "serinus.gateway" -}}{{ include "serinus.prefix" . }}-gateway{{- end -}}
{{- define "serinus.requestIds" -}}{{ include "serinus.prefix" . }}-request-ids{{- end -}}

{{/* By what pods are selected. To change it is a break: the selector of a Deployment is immutable. */}}
{{- define "serinus.selector" -}}
app.kubernetes.io/name: {{ include (printf "serinus.%s" .component) .root }}
{{- end -}}

{{/* Labels of an object; component is operator or gateway, or empty. */}}
{{- define "serinus.labels" -}}
{{- $name := .root.Chart.Name -}}
{{- if .component }}{{ $name = include (printf "serinus.%s" .component) .root }}{{ end -}}
app.kubernetes.io/name: {{ $name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/part-of: serinus
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of a pod: without the versions, so that a new chart alone replaces no pod. */}}
{{- define "serinus.podLabels" -}}
{{ include "serinus.selector" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: serinus
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with (index .root.Values .component).podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "serinus.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What both kinds of pods have: where they run, and as whom. */}}
{{- define "serinus.pod" -}}
{{- $own := index .root.Values .component -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- $these := dict "matchLabels" (include "serinus.selector" . | fromYaml) }}
  {{- range $own.topologySpreadConstraints }}
  {{- /* Without a selector a constraint is about no pod. */}}
  {{- list (merge dict . (hasKey . "labelSelector" | ternary dict (dict "labelSelector" $these))) | toYaml | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "serinus.selector" . | nindent 8 }}
  {{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "serinus.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The name of a role and of its bindings. A binding can not be moved to a role of another kind,
     so Roles have other names than ClusterRoles: an upgrade may then set watchNamespace. */}}
{{- define "serinus.roleName" -}}
{{ .name }}{{ if .root.Values.watchNamespace }}-namespaced{{ end }}
{{- end -}}

{{/* Where a role is about the namespaces of releases: all of them, or one. */}}
{{- define "serinus.watchedRole" -}}
{{- if .root.Values.watchNamespace -}}
kind: Role
metadata:
  name: {{ include "serinus.roleName" . }}
  namespace: {{ .namespace | default .root.Values.watchNamespace }}
{{- else -}}
kind: ClusterRole
metadata:
  name: {{ .name }}
{{- end }}
  labels:
    {{- include "serinus.labels" . | nindent 4 }}
{{- end -}}

{{/* A binding of a role that "serinus.watchedRole" makes to the component's account, in one
     namespace; value is the value of the chart that names this namespace, if one does. */}}
{{- define "serinus.bindingIn" -}}
{{- $watched := .root.Values.watchNamespace -}}
{{- if and $watched .value (ne $watched .namespace) -}}
{{- fail (printf "%s: the namespace %s is not looked after: watchNamespace is %s" .value .namespace $watched) -}}
{{- end -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "serinus.roleName" . }}
  namespace: {{ .namespace }}
  labels:
    {{- include "serinus.labels" . | nindent 4 }}
{{ include "serinus.roleRef" (dict "kind" (ternary "Role" "ClusterRole" (not (empty $watched))) "name" (include "serinus.roleName" .)) }}
{{ include "serinus.subject" . }}
{{- end -}}

{{- define "serinus.roleRef" -}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: {{ .kind }}, name: {{ .name }}}
{{- end -}}

{{- define "serinus.subject" -}}
subjects:
  - {kind: ServiceAccount, name: {{ include (printf "serinus.%s" .component) .root }}, namespace: {{ .root.Release.Namespace }}}
{{- end -}}

{{- define "serinus.podMonitor" -}}
{{- $own := (index .root.Values .component).podMonitor -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ include (printf "serinus.%s" .component) .root }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "serinus.labels" . | nindent 4 }}
    {{- with $own.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels:
      {{- include "serinus.selector" . | nindent 6 }}
  podMetricsEndpoints:
    - port: admin
      path: /metrics
      {{- with $own.interval }}
      interval: {{ . }}
      {{- end }}
{{- end -}}

{{/* The name of an admission policy and of its binding, which are of the whole cluster: each
     install of one namespace has its own. */}}
{{- define "serinus.admissionName" -}}
{{ include "serinus.prefix" .root }}-{{ .name }}{{ with .root.Values.watchNamespace }}-{{ . }}{{ end }}
{{- end -}}

{{/* An admission policy about a kind of ours, up to its rules. */}}
{{- define "serinus.admission" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ include "serinus.admissionName" . }}
  labels:
    {{- include "serinus.labels" . | nindent 4 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      - apiGroups: [serinus.dev]
        apiVersions: ["*"]
        resources: [{{ .resource }}]
        operations: [CREATE, UPDATE]
{{- end -}}

{{- define "serinus.admissionBinding" -}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ include "serinus.admissionName" . }}
  labels:
    {{- include "serinus.labels" . | nindent 4 }}
spec:
  policyName: {{ include "serinus.admissionName" . }}
  validationActions: {{ .root.Values.admission.actions | toJson }}
  {{- with .root.Values.watchNamespace }}
  matchResources:
    namespaceSelector:
      matchLabels: {kubernetes.io/metadata.name: {{ . }}}
  {{- end }}
{{- end -}}
