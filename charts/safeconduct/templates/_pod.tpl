{{/* A probe of a port of this host's network: by loopback where only that is listened on. */}}
{{- define "safeconduct.probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ .port | default "metrics" }}
  {{- $a := .root.Values.network.metrics.address }}
  {{- if not (has $a (list "0.0.0.0" "::")) }}
  host: {{ $a | quote }}
  {{- end }}
{{- end }}

{{/* Resources of the node service: what the values say, and the devices. */}}
{{- define "safeconduct.resources" -}}
{{- $r := deepCopy .Values.pod.resources.safeconduct }}
{{- $limits := default dict $r.limits }}
{{- if include "safeconduct.sgx" . }}{{ $limits = merge $limits .Values.sgx.resources }}{{ end }}
{{- if .Values.tpm.resource }}{{ $_ := set $limits .Values.tpm.resource 1 }}{{ end }}
{{- $_ := set $r "limits" $limits }}
{{- toYaml $r }}
{{- end }}

{{/* Changes with every file that is read at start only. The policy and the collateral are not among them. */}}
{{- define "safeconduct.hash" -}}
{{- $v := .Values }}
{{- $node := "" }}
{{- if $v.nodes }}{{ $node = include "safeconduct.nodeConfig" (dict "root" . "node" (dict "host" "x")) }}{{ end }}
{{- printf "%s\n%s\n%s\n%s\n%s\n%s" $node (ternary (include "safeconduct.tunnelConfig" .) "" $v.tunnel.enabled) $v.conf.policy.keys $v.conf.simulated.root (toJson $v.conf.qcnl) (toJson (list $v.helper $v.agent)) | sha256sum }}
{{- end }}

{{/* How the helper is placed. */}}
{{- define "safeconduct.placeHelper" -}}
{{- if eq .Values.helper.method "directory" -}}
args: [helper, --directory, {{ .Values.helper.directory }}, --settings, /etc/safeconduct/helper.yaml]
securityContext:
  runAsUser: 0
  {{- include "safeconduct.confined" . | nindent 2 }}
volumeMounts:
  - {name: etc, mountPath: /etc/safeconduct, readOnly: true}
  - {name: helper, mountPath: {{ .Values.helper.directory }}}
{{- else -}}
args: [helper, --host, /host, --settings, /etc/safeconduct/helper.yaml]
securityContext:
  runAsUser: 0
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  # It writes to the host's /usr and /etc and has the host's systemd read its units.
  capabilities: {drop: [ALL], add: [CHOWN, DAC_OVERRIDE, FOWNER, SYS_CHROOT]}
volumeMounts:
  - {name: etc, mountPath: /etc/safeconduct, readOnly: true}
  - {name: host, mountPath: /host, mountPropagation: HostToContainer}
{{- end }}
{{- end }}
