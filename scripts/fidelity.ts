// Writes the table of conformance in docs/fidelity.md: replays everything in test/recorded with the built command, group by
// group, and once more without host inputs.
// Usage: node scripts/run.mjs fidelity [--check]     (after a build)

import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { HOST_INPUT_KINDS } from '../src/cli/conform/host-inputs.ts';

const path = 'docs/fidelity.md';
const folder = 'test/recorded';

/** The groups of recordings, by the first letter of their names. */
const GROUPS: Record<string, string> = {
  a: 'small pages: discards, unmapping, protection, aliases, guest faults, shmem, read-only slots',
  b: 'huge pages, dirty logging, collapse, KSM',
  c: 'software-protected VMs: attributes, guest_memfd, mixed regions',
  d: 'memslots, both quirks, two address spaces, errnos',
  e: 'aging',
  f: 'NX huge pages',
  g: 'teardown, high addresses',
  h: 'random operations',
  i: 'a second vCPU in guest mode',
  k: 'random operations, mostly on huge pages',
  v: 'single calls of kvm_gfn_range handlers',
};

interface Totals {
  files: number;
  operations: number;
  changes: number;
  mismatches: number;
}

function conform(files: string[], ...options: string[]): { totals: Totals; inputs: Map<string, number> } {
  const command = ['dist/cli/main.js', 'conform', '--json', ...options, ...files];
  const { stdout, stderr, status } = spawnSync(process.execPath, command, { encoding: 'utf8', maxBuffer: 2 ** 28 });
  if (status !== 0 && status !== 1) throw new Error(`conform exited with ${status}: ${stderr}`);
  const listed = /^host inputs: (.*)$/m.exec(stderr)?.[1] ?? 'none';
  const pairs = listed === 'none' ? [] : listed.split(', ').map((pair) => pair.split(' ') as [string, string]);
  return {
    totals: JSON.parse(stdout) as Totals,
    inputs: new Map(pairs.map(([kind, count]) => [kind, Number(count)])),
  };
}

const number = (value: number) => value.toLocaleString('en-US');
const row = (cells: (string | number)[]) =>
  `| ${cells.map((cell) => (typeof cell === 'number' ? number(cell) : cell)).join(' | ')} |`;

const files = readdirSync(folder)
  .filter((name) => name.endsWith('.jsonl.gz'))
  .sort();
const groupOf = (name: string) => (name.startsWith('gfn-range-calls') ? 'v' : name[0]!);
const sum: Totals = { files: 0, operations: 0, changes: 0, mismatches: 0 };
const inputs = new Map<string, number>();
const rows: string[] = [];
for (const [group, what] of Object.entries(GROUPS)) {
  const own = files.filter((name) => groupOf(name) === group).map((name) => `${folder}/${name}`);
  const { totals, inputs: taken } = conform(own);
  rows.push(
    row([
      group === 'v' ? 'vectors' : group,
      what,
      totals.files,
      totals.operations,
      totals.changes,
      totals.mismatches,
      [...taken.values()].reduce((all, count) => all + count, 0),
    ]),
  );
  for (const key of Object.keys(sum) as (keyof Totals)[]) sum[key] += totals[key];
  for (const [kind, count] of taken) inputs.set(kind, (inputs.get(kind) ?? 0) + count);
}
if (sum.files !== files.length) throw new Error(`${folder} has a file of no group of scripts/fidelity.ts`);

const without = conform([folder], '--no-host-inputs').totals.mismatches;
const inferred = inputs.get('inferred') ?? 0;
const kinds = Object.entries(HOST_INPUT_KINDS).map(([kind, what]) => row([`\`${kind}\``, what, inputs.get(kind) ?? 0]));
const part = [
  '| group | what | files | operations | changes compared | mismatches | host inputs |',
  '| --- | --- | --- | --- | --- | --- | --- |',
  ...rows,
  '',
  '```text',
  `files ${sum.files}  operations ${sum.operations}  changes ${sum.changes}  mismatches ${sum.mismatches}`,
  '```',
  '',
  'Host inputs are what a replay takes from a recording because nothing before determines it: other actors on the host, and',
  'timing. None is an SPTE. By kind:',
  '',
  '| kind | what it is | taken |',
  '| --- | --- | --- |',
  ...kinds,
  '',
  `Inferred: ${inferred} of ${number(sum.operations)} operations. With \`--no-host-inputs\`, which takes none of them, there are`,
  `${number(without)} mismatches.`,
].join('\n');

const before = readFileSync(path, 'utf8');
const marks = /(<!-- conformance -->\n)[\s\S]*?(\n<!-- \/conformance -->)/;
if (!marks.test(before)) throw new Error(`${path} has no part <!-- conformance -->`);
const text = before.replace(marks, (_, open, close) => `${open}${part}${close}`);
if (sum.mismatches !== 0) {
  process.stderr.write(`${sum.mismatches} mismatches: npx eptsim conform ${folder}\n`);
  process.exitCode = 1;
}
if (process.argv.includes('--check')) {
  if (before !== text) {
    process.stderr.write(`${path} is stale: run npm run fidelity\n`);
    process.exitCode = 1;
  }
} else {
  writeFileSync(path, text);
  process.stderr.write(`wrote ${path}\n`);
}
