import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseAllDocuments } from 'yaml';

// The manifests of deploy/kubernetes as kubectl makes them of each overlay, held against Kubernetes' own types, and against
// each other.

const root = path.join(__dirname, '..', '..');
const manifests = path.join(root, 'deploy', 'kubernetes');
const types = path.dirname(require.resolve('kubernetes-types/package.json'));
const overlays = fs.readdirSync(path.join(manifests, 'overlays'));

interface Metadata {
  name: string;
  namespace?: string;
  labels?: Record<string, string>;
}
interface Resource {
  apiVersion: string;
  kind: string;
  metadata: Metadata;
  // biome-ignore lint/suspicious/noExplicitAny: each kind has its own; the compiler checks them below
  spec?: any;
  data?: Record<string, string>;
}

/** What `kubectl apply -k` would send. */
function build(overlay: string): Resource[] {
  const { status, stdout, stderr, error } = spawnSync(
    'kubectl',
    ['kustomize', path.join(manifests, 'overlays', overlay)],
    { encoding: 'utf8' },
  );
  if (error || status !== 0) throw new Error(`kubectl kustomize: ${error?.message ?? stderr}`);
  // A warning names what the next version of kustomize does not know any more.
  expect(stderr).toBe('');
  return parse(stdout);
}

function parse(text: string): Resource[] {
  return parseAllDocuments(text).map((document) => {
    expect(document.errors).toEqual([]);
    return document.toJS() as Resource;
  });
}

/** What the compiler says of resources as values of Kubernetes' types: fields that there are not, lacking ones, other types. */
function typeErrors(resources: readonly Resource[]): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'manifests-'));
  try {
    const lines = resources.map((resource, i) => {
      const { apiVersion, kind } = resource;
      const group = (apiVersion.includes('/') ? apiVersion : `core/${apiVersion}`).replace('.k8s.io', '');
      const from = JSON.stringify(path.join(types, group));
      return `import { ${kind} as Kind${i} } from ${from};\nexport const ${kind}${i}: Kind${i} = ${JSON.stringify(resource)};\n`;
    });
    fs.writeFileSync(path.join(directory, 'manifests.ts'), lines.join(''));
    const tsc = path.join(path.dirname(require.resolve('typescript/package.json')), 'bin', 'tsc');
    const options = ['--noEmit', '--strict', '--skipLibCheck', '--types', ''];
    const { stdout } = spawnSync(process.execPath, [tsc, ...options, 'manifests.ts'], {
      cwd: directory,
      encoding: 'utf8',
    });
    return stdout;
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}

const matches = (selector: Record<string, string>, labels: Record<string, string> | undefined) =>
  Object.entries(selector).every(([name, value]) => labels?.[name] === value);

/** Where kubectl is not installed, overlays cannot be built. Debian's own is too old to know components. */
const canBuild = spawnSync('kubectl', ['version', '--client']).status === 0;

(canBuild ? describe : describe.skip).each(overlays)('the overlay %s', (overlay) => {
  let resources: Resource[];
  let workloads: Resource[];
  const named = (kind: string, name: string) =>
    resources.find((each) => each.kind === kind && each.metadata.name === name);
  beforeAll(() => {
    resources = build(overlay);
    workloads = resources.filter(({ kind }) => kind === 'Deployment' || kind === 'StatefulSet');
  });

  test("has Kubernetes' types", () => {
    const custom = resources.filter(({ apiVersion }) => apiVersion.startsWith('monitoring.coreos.com/'));
    expect(custom.map(({ kind }) => kind)).toEqual(['PodMonitor']);
    expect(typeErrors(resources.filter((resource) => !custom.includes(resource)))).toBe('');
  });

  test('is refused with a field that there is not, without one that there must be, and with another type', () => {
    const spoil = (change: (server: Resource) => void): string => {
      const server = structuredClone(named('Deployment', 'chatglm-server') as Resource);
      change(server);
      return typeErrors([server]);
    };
    expect(spoil(() => {})).toBe('');
    expect(spoil(({ spec }) => Object.assign(spec.template.spec, { terminationGraceSeconds: 1 }))).toMatch(/TS2353/);
    expect(spoil(({ spec }) => delete spec.selector)).toMatch(/TS2741/);
    expect(spoil(({ spec }) => Object.assign(spec.template.spec.containers[0], { args: 'worker' }))).toMatch(/TS2322/);
  });

  test('lies in one namespace, whose name the resources agree on', () => {
    const namespace = resources.find(({ kind }) => kind === 'Namespace')?.metadata.name;
    expect(namespace).toBeDefined();
    for (const { kind, metadata } of resources)
      if (kind !== 'Namespace') expect([kind, metadata.namespace]).toEqual([kind, namespace]);
  });

  test('every reference has what it refers to', () => {
    const documentation = fs.readFileSync(path.join(root, 'docs', 'server-deploy.md'), 'utf8');
    /** Secrets are made by hand, so the documentation has to say how. */
    const secret = (name: string) =>
      expect(documentation).toMatch(new RegExp(`kubectl [^\n]*create secret (generic|tls) ${name} `));
    for (const { spec, metadata } of workloads) {
      const { template, selector, volumeClaimTemplates = [] } = spec;
      expect(matches(selector.matchLabels, template.metadata.labels)).toBe(true);
      const pod = template.spec;
      if (pod.serviceAccountName) expect(named('ServiceAccount', pod.serviceAccountName)).toBeDefined();
      const volumes: string[] = [];
      for (const { name, persistentVolumeClaim, secret: fromSecret, configMap } of pod.volumes ?? []) {
        volumes.push(name);
        if (persistentVolumeClaim)
          expect(named('PersistentVolumeClaim', persistentVolumeClaim.claimName)).toBeDefined();
        if (fromSecret) secret(fromSecret.secretName);
        if (configMap) expect(named('ConfigMap', configMap.name)).toBeDefined();
      }
      volumes.push(...volumeClaimTemplates.map((claim: Resource) => claim.metadata.name));
      for (const container of pod.containers) {
        const mounted = container.volumeMounts.map(({ name }: { name: string }) => name);
        expect([metadata.name, mounted.sort()]).toEqual([metadata.name, volumes.sort()]);
        for (const { configMapRef } of container.envFrom ?? [])
          expect(named('ConfigMap', configMapRef.name)).toBeDefined();
        for (const { valueFrom } of container.env ?? [])
          if (valueFrom?.secretKeyRef) secret(valueFrom.secretKeyRef.name);
        const ports = (container.ports ?? []).map(({ name }: { name: string }) => name);
        for (const probe of ['startupProbe', 'readinessProbe', 'livenessProbe']) {
          const get = container[probe]?.httpGet;
          if (get) expect(ports).toContain(get.port);
        }
      }
    }
    for (const { kind, spec } of resources) {
      const pods = (labels: Record<string, string>) =>
        workloads.filter((workload) => matches(labels, workload.spec.template.metadata.labels));
      if (kind === 'Service') {
        const [workload, ...others] = pods(spec.selector);
        expect(others).toEqual([]);
        const ports = workload?.spec.template.spec.containers[0].ports.map(({ name }: { name: string }) => name);
        for (const { targetPort } of spec.ports) expect(ports).toContain(targetPort);
      }
      if (kind === 'PodDisruptionBudget') expect(pods(spec.selector.matchLabels)).toHaveLength(1);
      if (kind === 'NetworkPolicy') expect(pods(spec.podSelector.matchLabels)).toHaveLength(1);
      if (kind === 'PodMonitor') {
        const [workload] = pods(spec.selector.matchLabels);
        const ports = workload?.spec.template.spec.containers[0].ports.map(({ name }: { name: string }) => name);
        for (const { port, authorization } of spec.podMetricsEndpoints) {
          expect(ports).toContain(port);
          secret(authorization.credentials.name);
        }
      }
      if (kind === 'HorizontalPodAutoscaler') {
        const { kind: target, name } = spec.scaleTargetRef;
        expect(named(target, name)?.spec.replicas).toBeUndefined();
      }
      if (kind === 'Ingress') {
        for (const { secretName } of spec.tls) secret(secretName);
        for (const { http } of spec.rules) {
          for (const { backend } of http.paths) {
            const ports = named('Service', backend.service.name)?.spec.ports.map(({ name }: { name: string }) => name);
            expect(ports).toContain(backend.service.port.name);
          }
        }
      }
    }
  });

  test('pods keep to the restricted standard, and to a root filesystem that is only read', () => {
    expect(workloads.map(({ metadata }) => metadata.name).sort()).toEqual([
      'chatglm-server',
      'chatglm-worker',
      'redis',
    ]);
    for (const { spec } of workloads) {
      const pod = spec.template.spec;
      expect(pod.securityContext).toMatchObject({ runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } });
      expect(pod.automountServiceAccountToken).toBe(false);
      for (const { securityContext, resources } of pod.containers) {
        expect(securityContext).toEqual({
          allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true,
          capabilities: { drop: ['ALL'] },
        });
        expect(resources.limits.memory).toBeDefined();
      }
    }
  });
});

test('every manifest of a folder is part of what its kustomization makes', () => {
  for (const folder of ['base', ...['components', 'overlays'].flatMap((kind) => folders(kind))]) {
    const directory = path.join(manifests, folder);
    const [kustomization] = parse(fs.readFileSync(path.join(directory, 'kustomization.yaml'), 'utf8')) as unknown as [
      { resources?: string[]; patches?: { path: string }[] },
    ];
    const used = [...(kustomization.resources ?? []), ...(kustomization.patches ?? []).map((patch) => patch.path)];
    const there = fs.readdirSync(directory).filter((name) => name.endsWith('.yaml') && name !== 'kustomization.yaml');
    expect([folder, used.filter((name) => name.endsWith('.yaml')).sort()]).toEqual([folder, there.sort()]);
  }
});

function folders(kind: string): string[] {
  return fs.readdirSync(path.join(manifests, kind)).map((name) => path.join(kind, name));
}
