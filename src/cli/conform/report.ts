// Prints a result: for a person, or as one JSON object.

import { inspect } from 'node:util';
import { HOST_INPUT_KINDS, type HostInputs } from './host-inputs.ts';
import type { RecordedOperation } from './reader.ts';
import type { ConformResult, Mismatch } from './run.ts';

/** Operations before a difference that an explanation lists. */
const HISTORY = 5;
/** Gfns on each side of a difference whose attributes an explanation looks at. */
const ATTRIBUTE_WINDOW = 512;

const RESULTS: ReadonlySet<string> = new Set([
  'i',
  'op',
  'ret',
  'errno',
  'exits',
  'left_gpa',
  'left_size',
  'dirty',
  'spte_changes',
  'other_events',
  'stats',
  'leafs',
  'tables',
  'h',
  'state',
  'nonleaf',
  'special',
  'note',
]);

/** One operation on one line: its index, name and arguments. */
export function describeOperation(operation: RecordedOperation): string {
  const args = Object.entries(operation.args)
    .filter(([name]) => !RESULTS.has(name))
    .map(([name, value]) => `${name}=${value}`);
  return `${operation.i} ${[operation.op, ...args].join(' ')}`;
}

/** The line of a difference. */
export function describeMismatch({ detail }: Mismatch): string {
  return `${detail.file}:${detail.i}: ${detail.field}: expected ${detail.expected}; actual ${detail.actual}`;
}

/** The state around a difference: the walk, the slots, the attributes, the last operations. */
export function explain({ difference, recording, operation, vm, slots }: Mismatch): string {
  const lines: string[] = [];
  const { place } = difference;
  if (vm !== undefined && place !== undefined) {
    const gpa = BigInt(place.gfn) * 4096n;
    lines.push(`  walk of gfn ${place.gfn} (as ${place.asId}):`);
    for (const entry of attempt(() => vm.walk(gpa, { asId: place.asId }), [])) {
      lines.push(`    ${inspect(entry, { breakLength: Number.POSITIVE_INFINITY, depth: 4 })}`);
    }
    lines.push(`  attributes: ${attributesAround(place.gfn, (gfn) => attempt(() => Number(vm.attributesOf(gfn)), 0))}`);
  }
  lines.push('  slots:', ...slots.map((slot) => `    ${slot}`));
  if (recording !== undefined && operation !== undefined) {
    const at = recording.operations.indexOf(operation);
    lines.push('  operations:');
    for (const before of recording.operations.slice(Math.max(0, at - HISTORY), at + 1)) {
      lines.push(`    ${describeOperation(before)}`);
    }
  }
  return lines.join('\n');
}

/** A dead VM answers nothing; an explanation then goes without. */
function attempt<T>(question: () => T, otherwise: T): T {
  try {
    return question();
  } catch {
    return otherwise;
  }
}

function attributesAround(gfn: number, attributesOf: (gfn: number) => number): string {
  const runs: string[] = [];
  let start = Math.max(0, gfn - ATTRIBUTE_WINDOW);
  const end = gfn + ATTRIBUTE_WINDOW;
  for (let at = start; at < end; at++) {
    if (at + 1 < end && attributesOf(at + 1) === attributesOf(start)) continue;
    runs.push(`[${start}, ${at + 1}) ${attributesOf(start)}`);
    start = at + 1;
  }
  return runs.join(', ');
}

/** The inputs taken, one line; none if there were none. */
export function describeInputs(inputs: HostInputs): string {
  if (inputs.counts.size === 0) return 'host inputs: none';
  const kinds = Object.keys(HOST_INPUT_KINDS) as (keyof typeof HOST_INPUT_KINDS)[];
  const parts = kinds.filter((kind) => inputs.counts.has(kind)).map((kind) => `${kind} ${inputs.counts.get(kind)}`);
  return `host inputs: ${parts.join(', ')}`;
}

/** The last line. */
export function describeTotals({ files, operations, changes, mismatches }: ConformResult): string {
  return `files ${files}  operations ${operations}  changes ${changes}  mismatches ${mismatches}`;
}
