{{- define "nslookout.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What selects a part's pods: no version in it, so that an upgrade can change the version. */}}
{{- define "nslookout.selector" -}}
app.kubernetes.io/name: nslookout
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "nslookout.labels" -}}
{{ include "nslookout.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "nslookout.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}

{{- define "nslookout.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The configuration: what the chart knows, and over it what the user says. */}}
{{- define "nslookout.config" -}}
{{- $name := include "nslookout.name" . -}}
{{- $accounts := dict "namespace" .Release.Namespace "prober" (printf "%s-prober" $name) "node" (printf "%s-node" $name) -}}
{{- $authority := dict "namespace" .Release.Namespace "name" (printf "%s-ca" $name) "owner" (printf "%s-correlator" $name) -}}
{{- $vouched := dict "authority" $authority -}}
{{- if .Values.correlator.tls.secretName -}}
{{- $vouched = dict "tls" (dict "certificate" "/var/run/secrets/tls/tls.crt" "key" "/var/run/secrets/tls/tls.key") -}}
{{- end -}}
{{- $known := dict "correlator" (merge $vouched (dict "accounts" $accounts)) -}}
{{- mergeOverwrite $known (deepCopy .Values.config) | toYaml -}}
{{- end }}

{{/* The port of an address to listen on. */}}
{{- define "nslookout.port" -}}
{{ regexFind "[0-9]+$" . }}
{{- end }}

{{/* A pod's annotations: a changed configuration starts the pods anew; meshes leave them alone. */}}
{{- define "nslookout.podAnnotations" -}}
checksum/config: {{ include "nslookout.config" .root | sha256sum }}
linkerd.io/inject: disabled
sidecar.istio.io/inject: "false"
{{- with .more }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Linux nodes of the image's architectures that run real pods: virtual kubelets have no network of ours to look at. */}}
{{- define "nslookout.agentAffinity" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - {key: kubernetes.io/os, operator: In, values: [linux]}
          - {key: kubernetes.io/arch, operator: In, values: {{ toJson .Values.image.architectures }}}
          - {key: type, operator: NotIn, values: [virtual-kubelet]}
          - {key: eks.amazonaws.com/compute-type, operator: NotIn, values: [fargate]}
{{- end }}

{{/* The service's variables by the kubelet: its ClusterIP, never a name. */}}
{{- define "nslookout.agentEnv" -}}
{{- $service := printf "%s-correlator" (include "nslookout.name" .) | upper | replace "-" "_" -}}
- name: NSLOOKOUT_NODE
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: NSLOOKOUT_CORRELATOR_SERVICE_HOST
  value: "$({{ $service }}_SERVICE_HOST)"
- name: NSLOOKOUT_CORRELATOR_SERVICE_PORT
  value: "$({{ $service }}_SERVICE_PORT)"
{{- end }}

{{- define "nslookout.agentMounts" -}}
- {name: config, mountPath: /etc/nslookout, readOnly: true}
- {name: token, mountPath: /var/run/secrets/nslookout, readOnly: true}
- {name: run, mountPath: /run/nslookout}
- {name: ca, mountPath: /run/nslookout/ca, readOnly: true}
{{- end }}

{{/* The token has an audience of its own: nobody can use it for anything else. The CA is published by the correlator
     (or by who makes its certificate), and kubelet starts the agents once it is there. */}}
{{- define "nslookout.agentVolumes" -}}
{{- $name := include "nslookout.name" . -}}
- name: config
  configMap: {name: {{ $name }}}
- name: run
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: ca
  {{- with .Values.correlator.tls.secretName }}
  # Of the same Secret as the key, and never the key.
  secret: {secretName: {{ . }}, items: [{key: ca.crt, path: ca.crt}]}
  {{- else }}
  configMap: {name: {{ $name }}-ca}
  {{- end }}
- name: token
  projected:
    sources:
      - serviceAccountToken: {audience: nslookout, expirationSeconds: 3600, path: token}
{{- end }}

{{/* kubelet asks on a unix socket: its own probes by HTTP would fail with the table full. */}}
{{- define "nslookout.probes" -}}
startupProbe:
  exec: {command: [/nslookout, alive]}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  exec: {command: [/nslookout, alive]}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  exec: {command: [/nslookout, alive]}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}

{{/* auto: where the cluster has the CRD. */}}
{{- define "nslookout.operator" -}}
{{- if eq (toString .enabled) "auto" }}{{ if .root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind) }}yes{{ end }}{{ else if eq (toString .enabled) "true" }}yes{{ end }}
{{- end }}
