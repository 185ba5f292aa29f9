{{- /* Written by make chart, from k8s/base and k8s/components. */ -}}
{{- define "hotswap.settings" -}}
HOTSWAP_API_KEYS: /etc/hotswap/api-keys
{{- if eq .Values.baseModel.from "hub" }}
HOTSWAP_BASE_MODEL: {{ .Values.baseModel.model | quote }}
{{- else if eq .Values.baseModel.from "image" }}
HOTSWAP_BASE_MODEL: /base/model
{{- else if eq .Values.baseModel.from "s3" }}
HOTSWAP_BASE_MODEL: /base/model
{{- end }}
HOTSWAP_CACHE: /var/lib/hotswap/cache
HOTSWAP_DRAIN_SECONDS: '30'
HOTSWAP_HOST: 0.0.0.0
{{- if .Values.jobs.volume.enabled }}
HOTSWAP_JOBS_FOLDER: /var/lib/hotswap-jobs
{{- end }}
{{- if .Values.jobs.enabled }}
HOTSWAP_JOBS: queue
{{- end }}
HOTSWAP_METRICS_PORT: '9000'
HOTSWAP_PORT: '8000'
{{- if .Values.s3.enabled }}
HOTSWAP_STORE: {{ .Values.s3.store | quote }}
{{- else }}
HOTSWAP_STORE: /var/lib/hotswap/store
{{- end }}
{{- end }}
{{- define "hotswap.train" -}}
activeDeadlineSeconds: 21600
backoffLimit: 0
template:
  metadata:
    labels:
      app.kubernetes.io/name: {{ include "hotswap.name" . }}-train
      app.kubernetes.io/part-of: hotswap
      app.kubernetes.io/instance: {{ .Release.Name }}
  spec:
{{- if not (or .Values.s3.enabled (ne .Values.storage.accessMode "ReadWriteOnce")) }}
    affinity:
      podAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          - labelSelector:
              matchLabels:
                app.kubernetes.io/name: {{ include "hotswap.name" . }}
                app.kubernetes.io/instance: {{ .Release.Name }}
            topologyKey: kubernetes.io/hostname
{{- end }}
    automountServiceAccountToken: false
    containers:
      - args:
          - python -m trainer train /recipe/recipe.yaml; python -m trainer evaluate /recipe/recipe.yaml; python -m trainer publish /recipe/recipe.yaml
        command:
          - sh
          - -ec
{{- if or (not (include "hotswap.named" (list .Values.trainer.extraEnv "OMP_NUM_THREADS"))) (not (include "hotswap.named" (list .Values.trainer.extraEnv "HOTSWAP_FEEDBACK_DATABASE"))) (.Values.trainer.extraEnv) }}
        env:
{{- if not (include "hotswap.named" (list .Values.trainer.extraEnv "OMP_NUM_THREADS")) }}
          - name: OMP_NUM_THREADS
            valueFrom:
              resourceFieldRef:
                resource: limits.cpu
{{- end }}
{{- if not (include "hotswap.named" (list .Values.trainer.extraEnv "HOTSWAP_FEEDBACK_DATABASE")) }}
          - name: HOTSWAP_FEEDBACK_DATABASE
            valueFrom:
              secretKeyRef:
                key: database
                name: {{ .Values.feedback.existingSecret }}
                optional: true
{{- end }}
{{- if .Values.trainer.extraEnv }}
          {{- toYaml .Values.trainer.extraEnv | nindent 10 }}
{{- end }}
{{- end }}
        envFrom:
          - configMapRef:
              name: {{ include "hotswap.fullname" . }}
{{- if eq .Values.baseModel.from "hub" }}
          - secretRef:
              name: {{ .Values.baseModel.existingSecret }}
              optional: true
{{- end }}
{{- if .Values.s3.enabled }}
          - secretRef:
              name: {{ .Values.s3.existingSecret }}
              optional: true
{{- end }}
        image: {{ printf "%s:%s" .Values.trainer.image.repository .Values.trainer.image.tag | quote }}
        name: trainer
{{- if .Values.trainer.resources }}
        resources:
          {{- toYaml .Values.trainer.resources | nindent 10 }}
{{- else }}
        resources:
          limits:
            cpu: '2'
            memory: 8Gi
          requests:
            cpu: '2'
            memory: 4Gi
{{- end }}
        securityContext:
          allowPrivilegeEscalation: false
          capabilities:
            drop:
              - ALL
          readOnlyRootFilesystem: true
        volumeMounts:
          - mountPath: /var/lib/hotswap
            name: data
          - mountPath: /tmp
            name: tmp
          - mountPath: /recipe
            name: recipe
            readOnly: true
{{- if eq .Values.baseModel.from "image" }}
          - mountPath: /base
            name: base
            readOnly: true
{{- else if eq .Values.baseModel.from "s3" }}
          - mountPath: /base
            name: base
            readOnly: true
{{- end }}
        workingDir: /var/lib/hotswap
{{- if .Values.image.pullPolicy }}
        imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
{{- end }}
    enableServiceLinks: false
{{- if eq .Values.baseModel.from "s3" }}
    initContainers:
      - args:
          - s3
          - sync
          - --only-show-errors
          - {{ .Values.baseModel.uri | quote }}
          - /base/model
        env:
          - name: HOME
            value: /tmp
        envFrom:
          - secretRef:
              name: {{ .Values.s3.existingSecret }}
              optional: true
        image: public.ecr.aws/aws-cli/aws-cli:2.31.0
        name: base
        resources:
          limits:
            cpu: '1'
            memory: 1Gi
          requests:
            cpu: 500m
            memory: 512Mi
        securityContext:
          allowPrivilegeEscalation: false
          capabilities:
            drop:
              - ALL
          readOnlyRootFilesystem: true
        volumeMounts:
          - mountPath: /base
            name: base
          - mountPath: /tmp
            name: tmp
{{- end }}
    restartPolicy: Never
    securityContext:
      fsGroup: 10001
      fsGroupChangePolicy: OnRootMismatch
      runAsGroup: 10001
      runAsNonRoot: true
      runAsUser: 10001
      seccompProfile:
        type: RuntimeDefault
    serviceAccountName: {{ include "hotswap.serviceAccount" . }}
    volumes:
      - name: data
{{- if .Values.s3.enabled }}
        emptyDir:
          sizeLimit: 20Gi
{{- end }}
{{- if not (.Values.s3.enabled) }}
        persistentVolumeClaim:
          claimName: {{ .Values.storage.existingClaim | default (include "hotswap.fullname" .) }}
{{- end }}
      - emptyDir:
          sizeLimit: 4Gi
        name: tmp
      - configMap:
          name: {{ .Values.train.recipe }}
        name: recipe
{{- if eq .Values.baseModel.from "image" }}
      - image:
          pullPolicy: IfNotPresent
          reference: {{ .Values.baseModel.image | quote }}
        name: base
{{- else if eq .Values.baseModel.from "s3" }}
      - emptyDir:
          sizeLimit: 40Gi
        name: base
{{- end }}
{{- if .Values.imagePullSecrets }}
    imagePullSecrets:
      {{- toYaml .Values.imagePullSecrets | nindent 6 }}
{{- end }}
{{- if .Values.trainer.nodeSelector }}
    nodeSelector:
      {{- toYaml .Values.trainer.nodeSelector | nindent 6 }}
{{- end }}
{{- if .Values.trainer.tolerations }}
    tolerations:
      {{- toYaml .Values.trainer.tolerations | nindent 6 }}
{{- end }}
{{- end }}
