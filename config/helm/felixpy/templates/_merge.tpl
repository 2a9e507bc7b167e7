{{- /* A strategic merge as kustomize does it, as far as the overlays of config/kubernetes need it. Each gives YAML. */}}

{{- /* base, patch: objects. Lists of these fields are merged by a key, all others replaced. */}}
{{- define "felixpy.merged" }}
{{- $result := deepCopy .base }}
{{- $keys := dict "containers" "name" "initContainers" "name" "volumes" "name" "env" "name" "volumeMounts" "mountPath" }}
{{- range $field, $value := .patch }}
{{- $before := get $result $field }}
{{- if and (kindIs "map" $value) (kindIs "map" $before) }}
{{- $_ := set $result $field (fromYaml (include "felixpy.merged" (dict "base" $before "patch" $value))) }}
{{- else if and (kindIs "slice" $value) (kindIs "slice" $before) (hasKey $keys $field) }}
{{- $_ := set $result $field (fromYamlArray (include "felixpy.listed" (dict "base" $before "patch" $value "key" (get $keys $field)))) }}
{{- else }}
{{- $_ := set $result $field $value }}
{{- end }}
{{- end }}
{{- toYaml $result }}
{{- end }}

{{- /* base, patch: lists of objects that key tells apart. */}}
{{- define "felixpy.listed" }}
{{- $key := .key }}
{{- $patches := dict }}
{{- range .patch }}
{{- $_ := set $patches (get . $key) . }}
{{- end }}
{{- $found := list }}
{{- range $one := .base }}
{{- $patch := get $patches (get $one $key) }}
{{- $_ := unset $patches (get $one $key) }}
{{- if not $patch }}
{{- $found = append $found $one }}
{{- else if ne (get $patch "$patch") "delete" }}
{{- $found = append $found (fromYaml (include "felixpy.merged" (dict "base" $one "patch" $patch))) }}
{{- end }}
{{- end }}
{{- range $patches }}
{{- $found = append $found . }}
{{- end }}
{{- toYaml $found }}
{{- end }}

{{- /* object, patches: those of a kustomization that meet it. Nothing comes back if one of them takes it away. */}}
{{- define "felixpy.patched" }}
{{- $object := .object }}
{{- range .patches }}
{{- $patch := fromYaml .patch }}
{{- $of := default (dict "kind" $patch.kind "name" (dig "metadata" "name" "" $patch)) .target }}
{{- if and $object (eq $of.kind $object.kind) (has (default $object.metadata.name $of.name) (list $object.metadata.name)) }}
{{- if not $patch.kind }}
{{- $object = fromYaml (include "felixpy.stepped" (dict "object" $object "steps" (fromYamlArray .patch))) }}
{{- else if eq (get $patch "$patch") "delete" }}
{{- $object = dict }}
{{- else }}
{{- $object = fromYaml (include "felixpy.merged" (dict "base" $object "patch" $patch)) }}
{{- end }}
{{- end }}
{{- end }}
{{- if $object }}
{{- toYaml $object }}
{{- end }}
{{- end }}

{{- /* object, steps: of JSON Patch, an element that is added at the end of a list, or taken out of it. */}}
{{- define "felixpy.stepped" }}
{{- $object := deepCopy .object }}
{{- range $step := .steps }}
{{- if ne $step.op "test" }}
{{- $path := splitList "/" (trimPrefix "/" $step.path) }}
{{- $place := $object }}
{{- range initial (initial $path) }}
{{- $place = get $place . }}
{{- end }}
{{- $field := last (initial $path) }}
{{- $kept := list }}
{{- range $number, $one := get $place $field }}
{{- if or (ne $step.op "remove") (ne (toString $number) (last $path)) }}
{{- $kept = append $kept $one }}
{{- end }}
{{- end }}
{{- if eq $step.op "add" }}
{{- $kept = append $kept $step.value }}
{{- end }}
{{- $_ := set $place $field $kept }}
{{- end }}
{{- end }}
{{- toYaml $object }}
{{- end }}
