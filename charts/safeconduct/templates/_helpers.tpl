{{/* Labels of a component, by OpenStack-Helm's names. */}}
{{- define "safeconduct.selector" -}}
release_group: {{ .root.Values.release_group | default .root.Release.Name }}
application: safeconduct
component: {{ .component }}
{{- end }}

{{- define "safeconduct.labels" -}}
{{ include "safeconduct.selector" . }}
app.kubernetes.io/name: safeconduct
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
safeconduct/mode: {{ .root.Values.mode }}
{{- end }}

{{/* Labels of pods. */}}
{{- define "safeconduct.podLabels" -}}
{{ include "safeconduct.selector" . }}
app.kubernetes.io/name: safeconduct
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
safeconduct/mode: {{ .root.Values.mode }}
{{- with .root.Values.labels.pod }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Name of an object: that of the release, and what it is for. */}}
{{- define "safeconduct.name" -}}
{{- $base := .root.Release.Name -}}
{{- if not (contains "safeconduct" $base) }}{{ $base = printf "%s-safeconduct" $base }}{{ end -}}
{{- if .of }}{{ $base = printf "%s-%s" ($base | trunc 48 | trimSuffix "-") .of }}{{ end -}}
{{- $base | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "safeconduct.simulated" -}}
{{- if eq .Values.mode "simulated" }}true{{ end -}}
{{- end }}

{{/* Whether pods ask for SGX's resources and nodes. */}}
{{- define "safeconduct.sgx" -}}
{{- if or (ne .Values.mode "simulated") .Values.sgx.rehearse }}true{{ end -}}
{{- end }}

{{/* On everything that is simulated. */}}
{{- define "safeconduct.annotations" -}}
{{- if include "safeconduct.simulated" . }}
safeconduct/warning: "SIMULATED: there is no hardware enclave, nothing is protected"
{{- end }}
{{- end }}

{{- define "safeconduct.nodeSelector" -}}
{{ .Values.labels.agent.safeconduct.node_selector_key }}: {{ .Values.labels.agent.safeconduct.node_selector_value | quote }}
{{- end }}

{{- define "safeconduct.tolerations" -}}
{{- $all := .Values.pod.tolerations }}
{{- if include "safeconduct.sgx" . }}{{ $all = concat $all .Values.sgx.tolerations }}{{ end }}
{{- with $all }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "safeconduct.pullSecrets" -}}
{{- with .Values.images.pull_secrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What every container of ours is held to. */}}
{{- define "safeconduct.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Callers of the local socket: the given ones, and the tunnel and the agent where they need it. A method's entry replaces its service's, hence the sums. */}}
{{- define "safeconduct.callers" -}}
{{- $callers := deepCopy (default dict .Values.conf.safeconductd.local.callers) }}
{{- $more := list }}
{{- if .Values.tunnel.enabled }}
{{- range list "CryptoService/DeriveKey" "MigrationService/Watch" "MigrationService/List" }}{{ $more = append $more (list . (int $.Values.tunnel.uid)) }}{{ end }}
{{- end }}
{{- if .Values.agent.per_node }}
{{- range list "AdminService/GetStatus" "IntegrityService/GetPolicy" "AttestationService/Preflight" "MigrationService/List" "MigrationService/Get" "MigrationService/Abort" }}
{{- $more = append $more (list . (int $.Values.agent.uid)) }}
{{- end }}
{{- end }}
{{- range $more }}
{{- $method := index . 0 }}
{{- $have := list }}
{{- /* The key of the tunnel is for the tunnel alone. */}}
{{- if hasKey $callers $method }}{{ $have = get $callers $method }}
{{- else if ne $method "CryptoService/DeriveKey" }}{{ $have = default list (get $callers (first (splitList "/" $method))) }}{{ end }}
{{- $_ := set $callers $method (append $have (index . 1) | uniq) }}
{{- end }}
{{- $out := dict }}
{{- range $k, $v := $callers }}{{ if $v }}{{ $_ := set $out $k $v }}{{ end }}{{ end }}
{{- toYaml $out }}
{{- end }}

{{/* HOST:PORT to listen on. */}}
{{- define "safeconduct.listen" -}}
{{- printf "%s:%d" (ternary (printf "[%s]" .address) .address (contains ":" .address)) (int .port) }}
{{- end }}

{{/* agent.yaml of one node. */}}
{{- define "safeconduct.agentConfig" -}}
{{- $v := .root.Values }}
{{- $clouds := dict "clouds" (dict "file" "/etc/openstack/clouds.yaml" "cloud" $v.agent.cloud) }}
{{- /* A container does not see libvirt's processes: whether the helper is there is the operator's word. */}}
{{- $traits := dict "vtpm" (ternary "stated" "off" $v.helper.enabled) "tunnel" (ternary (printf "http://127.0.0.1:%d" (int $v.network.metrics.tunnel_port)) "off" (and $v.tunnel.enabled (has $v.network.metrics.address (list "0.0.0.0" "127.0.0.1")))) }}
{{- $listen := include "safeconduct.listen" (dict "address" $v.network.metrics.address "port" $v.network.metrics.agent_port) }}
{{- merge (deepCopy $v.agent.conf) (dict "mode" $v.mode "role" "node" "host" .node.host "openstack" $clouds "traits" $traits "http" (dict "listen" $listen)) | toYaml }}
{{- end }}

{{/* safeconductd.yaml of one node: {root, node}. */}}
{{- define "safeconduct.nodeConfig" -}}
{{- $v := .root.Values }}
{{- $c := deepCopy $v.conf.safeconductd }}
{{- $simulated := include "safeconduct.simulated" .root }}
{{- $_ := set $c "mode" $v.mode }}
{{- $_ := set $c "host" .node.host }}
{{- $_ := set $c "state_dir" "/var/lib/safeconduct" }}
{{- $_ := set $c.local "socket" "/run/safeconduct/node.sock" }}
{{- $_ := set $c.local "callers" (include "safeconduct.callers" .root | fromYaml) }}
{{- $_ := set $c.peer "listen" (printf "0.0.0.0:%d" (int (default $v.network.node.port .node.port))) }}
{{- if ne $v.certificates.source "none" }}
{{- $tls := dict }}
{{- range list "certificate" "key" "ca" }}{{ $_ := set $tls . (printf "/var/lib/safeconduct/tls/%s" (get $v.certificates .)) }}{{ end }}
{{- $_ := set $c.peer "tls" $tls }}
{{- end }}
{{- $peers := list }}
{{- $self := .node.host }}
{{- range $v.nodes }}
{{- if ne .host $self }}
{{- $address := .address }}{{ if contains ":" $address }}{{ $address = printf "[%s]" $address }}{{ end }}
{{- $peers = append $peers (dict "host" .host "address" (printf "%s:%d" $address (int (default $v.network.node.port .port)))) }}
{{- end }}
{{- end }}
{{- $_ := set $c "peers" $peers }}
{{- $_ := set $c "http" (dict "listen" (printf "%s:%d" (ternary (printf "[%s]" $v.network.metrics.address) $v.network.metrics.address (contains ":" $v.network.metrics.address)) (int $v.network.metrics.port))) }}
{{- $policy := dict "file" "/etc/safeconduct/policy/policy.json" }}
{{- if $simulated }}
{{- $_ := set $policy "keys" "/etc/safeconduct/policy-keys.pem" }}
{{- $_ := set $c "simulated" (dict "platform" "/var/lib/safeconduct/platform" "root" "/etc/safeconduct/simulated-root.pem") }}
{{- end }}
{{- $_ := set $c "policy" $policy }}
{{- $_ := set $c.integrity "root" "/host" }}
{{- if $v.tpm.resource }}{{ $_ := set $c.integrity "tpm" (printf "device:%s" $v.tpm.device) }}{{ end }}
{{- range list "sessions" "audit" "log" }}{{ if not (get $c .) }}{{ $_ := unset $c . }}{{ end }}{{ end }}
{{- toYaml $c }}
{{- end }}

{{/* tunnel.yaml. */}}
{{- define "safeconduct.tunnelConfig" -}}
{{- $v := .Values }}
mode: {{ $v.mode }}
node: unix:///run/safeconduct/node.sock
listen: 0.0.0.0:{{ $v.network.tunnel.port }}
dir: /run/safeconduct/tunnel
group: {{ $v.tunnel.gid | quote }}
peer_address: "{host}:{{ $v.network.tunnel.port }}"
peers:
  {{- range $v.nodes }}
  - host: {{ .host }}
    address: {{ printf "%s:%d" (ternary (printf "[%s]" .address) .address (contains ":" .address)) (int (default $v.network.tunnel.port .tunnel_port)) | quote }}
  {{- end }}
connections_per_vm: {{ $v.tunnel.connections_per_vm }}
connections: {{ $v.tunnel.connections }}
http: {listen: {{ printf "%s:%d" (ternary (printf "[%s]" $v.network.metrics.address) $v.network.metrics.address (contains ":" $v.network.metrics.address)) (int $v.network.metrics.tunnel_port) | quote }}}
{{- end }}

{{/* What no schema can say. */}}
{{- define "safeconduct.check" -}}
{{- $v := .Values }}
{{- $seen := dict }}
{{- range $key, $image := $v.images.tags }}
{{- if hasSuffix ":latest" $image }}{{ fail (printf "images.tags.%s: %s: name a version or a digest: with latest, nodes run different measurements" $key $image) }}{{ end }}
{{- end }}
{{- range list $v.conf.policy.keys $v.conf.simulated.root }}
{{- if contains "PRIVATE KEY" . }}{{ fail "conf: this is a private key; it does not belong on a node. conf.policy.keys has the public ones, conf.simulated.root a certificate" }}{{ end }}
{{- end }}
{{- range $v.nodes }}
{{- if hasKey $seen .host }}{{ fail (printf "nodes: host %s is listed twice" .host) }}{{ end }}
{{- $_ := set $seen .host true }}
{{- end }}
{{- if ge (int $v.pod.lifecycle.drain_deadline) (int $v.pod.lifecycle.termination_grace_period) }}
{{- fail (printf "pod.lifecycle: drain_deadline is %d s, and must be shorter than termination_grace_period, %d s: the pod would be killed before the drain ends" (int $v.pod.lifecycle.drain_deadline) (int $v.pod.lifecycle.termination_grace_period)) }}
{{- end }}
{{- if eq (empty $v.conf.policy.envelope) (empty $v.conf.policy.existing_configmap) }}
{{- fail "conf.policy: give envelope, the signed policy, or existing_configmap, and not both; `safeconduct policy sign` makes the envelope" }}
{{- end }}
{{- if and $v.conf.policy.envelope (not (hasKey (fromJson $v.conf.policy.envelope) "payloadType")) }}
{{- fail "conf.policy.envelope is not a signed policy: it is what `safeconduct policy sign` writes, not the policy itself" }}
{{- end }}
{{- if and $v.agent.per_node (has (int $v.agent.uid) (list (int $v.pod.security_context.uid) (int $v.tunnel.uid))) }}
{{- fail "agent.uid is the node service's or the tunnel's: the node service tells its callers apart by uid" }}
{{- end }}
{{- if and $v.tunnel.enabled (eq (int $v.tunnel.uid) (int $v.pod.security_context.uid)) }}
{{- fail "tunnel.uid is the node service's own: that uid may call everything" }}
{{- end }}
{{- if and (eq $v.certificates.source "csi") (not (get $v.certificates.csi "driver")) }}
{{- fail "certificates.csi.driver is missing" }}
{{- end }}
{{- $simulated := include "safeconduct.simulated" . }}
{{- if and $simulated (or (not $v.conf.policy.keys) (not $v.conf.simulated.root)) }}{{ fail "conf.policy.keys and conf.simulated.root are missing: a simulation is told whose policy counts, and under which test root" }}{{ end }}
{{- if and (not $simulated) (or $v.conf.policy.keys $v.conf.simulated.root) }}{{ fail "conf.policy.keys and conf.simulated.root are for mode simulated: a real enclave has its keys measured in" }}{{ end }}
{{- $sources := 0 }}{{ range list "pccs" "bundle" "dir" }}{{ if hasKey $v.conf.safeconductd.collateral . }}{{ $sources = add1 $sources }}{{ end }}{{ end }}
{{- if ne (int $sources) 1 }}{{ fail (printf "conf.safeconductd.collateral: %d of pccs, bundle and dir are given, expected one" (int $sources)) }}{{ end }}
{{- if and $v.manifests.pod_monitor (has $v.network.metrics.address (list "127.0.0.1" "::1")) }}{{ fail "manifests.pod_monitor: Prometheus cannot reach network.metrics.address 127.0.0.1" }}{{ end }}
{{- if and $simulated $v.conf.qcnl }}{{ fail "conf.qcnl is for mode intel: a simulation has no quote library" }}{{ end }}
{{- if and (hasKey $v.conf.safeconductd.integrity "tpm") $v.tpm.resource }}{{ fail "conf.safeconductd.integrity.tpm and tpm.resource both name the TPM: leave out the first" }}{{ end }}
{{- if and (or $v.manifests.deployment_agent $v.agent.per_node) (not $v.agent.clouds_secret) }}{{ fail "agent.clouds_secret is missing: the agent needs a clouds.yaml" }}{{ end }}
{{- range $key := list "boot_log" "ima_list" }}
{{- if and (hasKey $v.conf.safeconductd.integrity $key) (not $v.tpm.resource) (not (hasKey $v.conf.safeconductd.integrity "tpm")) }}
{{- fail (printf "conf.safeconductd.integrity.%s needs a TPM that covers it: set tpm.resource" $key) }}
{{- end }}
{{- end }}
{{- end }}
