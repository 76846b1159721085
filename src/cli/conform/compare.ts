// Compares what a recording says of one operation with what the replay did.
//
// Changes are compared run against run, events one by one with their position among the changes, so equal lists of
// both mean the same interleaving. Each field gives at most one difference per operation: the first.
// Nothing here decides what to do about a difference, and nothing is skipped but what is named here:
// events whose host range overlaps no memslot, and the Accessed and Dirty bits of old values while a second vCPU runs.

import { crc32 } from 'node:zlib';
import type { RawExit, RecordedOperation } from './reader.ts';
import {
  ACCESSED,
  ChangeRuns,
  CLASS_MASK,
  DIRTY,
  describeMeaning,
  EXECUTABLE,
  type FieldKind,
  type FieldValue,
  FROZEN,
  HOST_WRITABLE,
  LEAF,
  MMU_WRITABLE,
  meaningOfSpte,
  mmioMeaning,
  NONPRESENT,
  normalise,
  type PlainEvent,
  plainEvents,
  TABLE,
  UNKNOWN,
  WRITABLE,
} from './unfold.ts';

/** The meaning of an SPTE as the trace of a VM gives it. */
export interface TracedMeaning {
  readonly class: string;
  readonly writable?: boolean;
  readonly executable?: boolean;
  readonly accessed?: boolean;
  readonly dirty?: boolean;
  readonly hostWritable?: boolean;
  readonly mmuWritable?: boolean;
  readonly mmioGeneration?: number | undefined;
}

/** A trace event of a VM: `spte_changed` with a run of changes, or one of the kernel's calls with named fields. */
export type TracedEvent = { readonly name: string };

interface TracedChange extends TracedEvent {
  readonly asId: number;
  readonly gfn: number;
  readonly level: number;
  readonly old: TracedMeaning;
  readonly new: TracedMeaning;
  readonly count: number;
}

/** A maximal run of leafs of one address space and level, ascending by gfn. */
export interface TracedLeafs {
  readonly asId: number;
  readonly level: number;
  readonly gfn: number;
  readonly count: number;
  readonly meaning: number;
}

/** What the replay of one operation gave. */
export interface Outcome {
  readonly ret: number;
  readonly errno: string | undefined;
  readonly exits: readonly RawExit[] | undefined;
  readonly leftGpa: bigint | undefined;
  readonly leftSize: bigint | undefined;
  readonly dirty: readonly (readonly [number, number])[] | undefined;
  readonly trace: readonly TracedEvent[];
  /** Deltas of KVM's counters by their recorded names; absent where KVM's file was closed. */
  readonly stats: Readonly<Record<string, number>> | undefined;
  /** The state after the operation; asked only where the recording has one. */
  readonly leafs: () => readonly TracedLeafs[];
  readonly tables: () => number;
}

/** What the comparison must know of the VM's surroundings. */
export interface Surroundings {
  /** Whether [start, end) of host addresses overlaps a memslot. */
  overlapsSlot(start: FieldValue, end: FieldValue): boolean;
  /** A second vCPU runs: compare per actor, and mask A and D of old values. */
  secondVcpuRuns: boolean;
}

export interface Difference {
  readonly field: string;
  readonly expected: string;
  readonly actual: string;
  /** Where in guest memory to look, if the difference has a place. */
  readonly place?: { readonly asId: number; readonly gfn: number };
  /** Host addresses that a differing notifier event names. */
  readonly hvas?: readonly bigint[];
  /** How many changes or events agree before it. */
  readonly agreed?: number;
}

/** A field of an event: the property that holds it in a trace, or none if it is not compared, and how it is written. */
type EventField = readonly [property: string | undefined, kind: FieldKind];

function whole(...properties: (string | undefined)[]): EventField[] {
  return properties.map((property) => [property, 'whole']);
}

const HVA_RANGE: readonly EventField[] = [
  ['start', 'hex'],
  ['end', 'hex'],
];
const GFN_RANGE = whole('slot', 'asId', 'start', 'end', 'arg', 'attrFilter', 'mayBlock');
const ATTRIBUTE_RANGE = whole('slot', 'asId', 'start', 'end', 'arg', 'mayBlock');

/** Events that are compared, with their fields in the order of the recordings. */
export const EVENT_FIELDS: Readonly<Record<string, readonly EventField[]>> = {
  kvm_unmap_hva_range: HVA_RANGE,
  kvm_age_hva: HVA_RANGE,
  kvm_test_age_hva: HVA_RANGE,
  unmap_gfn_range: GFN_RANGE,
  unmap_gfn_range_ret: whole('ret'),
  age_gfn: GFN_RANGE,
  age_gfn_ret: whole('ret'),
  test_age_gfn: GFN_RANGE,
  test_age_gfn_ret: whole('ret'),
  pre_attr: ATTRIBUTE_RANGE,
  post_attr: ATTRIBUTE_RANGE,
  inv_begin: whole('inProgress', 'seq'),
  inv_add: whole('start', 'end'),
  inv_end: whole('seq', 'inProgress', 'start', 'end'),
  flush: [],
  flush_range: whole('gfn', 'npages'),
  req: whole('nr'),
  // Beyond what makes two runs equal: the calls between, which tell sooner and closer where two go apart.
  zap_leafs: whole('start', 'end', 'canYield', 'flush'),
  zap_leafs_ret: whole('ret'),
  zap_root: whole('shared', 'level'),
  zap_all: [],
  inv_roots: [],
  zap_inv_roots: [],
  zap_all_fast: whole(undefined, undefined),
  split_huge: whole('slot', 'start', 'end', 'target', 'shared'),
  split_huge_page: [
    ['gfn', 'whole'],
    [undefined, 'hex'],
    ['level', 'whole'],
    [undefined, 'whole'],
  ],
  wrprot_slot: whole('slot', 'level'),
  clear_dirty_mask: whole('slot', 'gfn', 'mask', undefined),
  write_protect_gfn: whole('gfn', 'level'),
  zap_collapsible: whole('slot'),
  set_memslot: whole('change'),
  swap_memslots: whole('asId'),
  flush_shadow_memslot: whole('slot', 'gfn', 'npages'),
  commit_region: whole('change'),
  mmio_gen: whole('generation'),
  gmem_inval_begin: whole('start', 'end'),
  flush_shadow_all: [],
  reclaimed: [],
  mark_mmio_spte: whole('gfn', undefined, undefined),
};

/** KVM_REQ_TLB_FLUSH and KVM_REQ_MMU_FREE_OBSOLETE_ROOTS; other requests are no flushes and depend on the vCPU's start. */
const COMPARED_REQUESTS: ReadonlySet<number> = new Set([768, 807]);

const HVA_EVENTS: ReadonlySet<string> = new Set(['kvm_unmap_hva_range', 'kvm_age_hva', 'kvm_test_age_hva']);

/** The compared events with the kinds of their fields, for plainEvents(). */
export const EVENT_KINDS: ReadonlyMap<string, readonly FieldKind[]> = new Map(
  Object.entries(EVENT_FIELDS).map(([name, fields]) => [name, fields.map(([, kind]) => kind)]),
);

/** KVM's counters that are compared, under their recorded names. */
export const COMPARED_STATS = [
  'vm.remote_tlb_flush',
  'vm.remote_tlb_flush_requests',
  'vm.pages_4k',
  'vm.pages_2m',
  'vm.pages_1g',
  'vm.nx_lpage_splits',
  'vcpu.pf_taken',
  'vcpu.pf_fixed',
  'vcpu.pf_emulate',
  'vcpu.pf_spurious',
  'vcpu.pf_fast',
  'vcpu.pf_mmio_spte_created',
  'vcpu.tlb_flush',
] as const;

/** The integer form of a traced meaning. */
export function toMeaning(traced: TracedMeaning): number {
  switch (traced.class) {
    case 'nonpresent':
      return NONPRESENT;
    case 'frozen':
      return FROZEN;
    case 'table':
      return TABLE;
    case 'mmio':
      return mmioMeaning(traced.mmioGeneration ?? 0);
    case 'leaf':
      return (
        LEAF |
        (traced.writable ? WRITABLE : 0) |
        (traced.executable ? EXECUTABLE : 0) |
        (traced.accessed ? ACCESSED : 0) |
        (traced.dirty ? DIRTY : 0) |
        (traced.hostWritable ? HOST_WRITABLE : 0) |
        (traced.mmuWritable ? MMU_WRITABLE : 0)
      );
    default:
      return UNKNOWN;
  }
}

/** One list of changes in order, as runs. `next()` moves to the following run and says whether there is one. */
interface Runs {
  asId: number;
  gfn: number;
  level: number;
  oldMeaning: number;
  newMeaning: number;
  count: number;
  gfnStep: number;
  keepsFrame: boolean;
  next(): boolean;
}

class TracedRuns implements Runs {
  asId = 0;
  gfn = 0;
  level = 0;
  oldMeaning = 0;
  newMeaning = 0;
  count = 0;
  gfnStep = 0;
  keepsFrame = true;

  private at = 0;
  private readonly trace: readonly TracedEvent[];

  constructor(trace: readonly TracedEvent[]) {
    this.trace = trace;
  }

  next(): boolean {
    while (this.at < this.trace.length) {
      const event = this.trace[this.at++];
      if (event.name !== 'spte_changed') continue;
      const change = event as TracedChange;
      this.asId = change.asId;
      this.gfn = change.gfn;
      this.level = change.level;
      this.oldMeaning = toMeaning(change.old);
      this.newMeaning = toMeaning(change.new);
      this.count = change.count;
      this.gfnStep = 512 ** (change.level - 1);
      return true;
    }
    return false;
  }
}

/** Whose change this is, while a second vCPU runs beside an operation that installs nothing itself. */
type Actor = 'all' | 'operation' | 'vcpu';

/** The runs of one actor out of a list. A change that installs a table or a leaf is the vCPU's. */
class ActorRuns implements Runs {
  private readonly runs: Runs;
  private readonly actor: Actor;

  constructor(runs: Runs, actor: Actor) {
    this.runs = runs;
    this.actor = actor;
  }

  get asId(): number {
    return this.runs.asId;
  }

  get gfn(): number {
    return this.runs.gfn;
  }

  get level(): number {
    return this.runs.level;
  }

  get oldMeaning(): number {
    return this.runs.oldMeaning;
  }

  get newMeaning(): number {
    return this.runs.newMeaning;
  }

  get count(): number {
    return this.runs.count;
  }

  get gfnStep(): number {
    return this.runs.gfnStep;
  }

  get keepsFrame(): boolean {
    return this.runs.keepsFrame;
  }

  next(): boolean {
    while (this.runs.next()) {
      if (isInstall(this.runs) === (this.actor === 'vcpu')) return true;
    }
    return false;
  }
}

function isInstall(runs: Runs): boolean {
  const newClass = runs.newMeaning & CLASS_MASK;
  return (runs.oldMeaning & CLASS_MASK) === NONPRESENT && (newClass === TABLE || newClass === LEAF);
}

function describeChange(runs: Runs, offset: number): string {
  const gfn = runs.gfn + offset * runs.gfnStep;
  const change = `${describeMeaning(runs.oldMeaning)} -> ${describeMeaning(runs.newMeaning)}`;
  return `as ${runs.asId} gfn ${gfn} level ${runs.level}: ${change}${runs.keepsFrame ? '' : ', another frame'}`;
}

/** The first difference of two lists of changes, or undefined. */
function compareChanges(expected: Runs, actual: Runs, oldMask: number, prefix: string): Difference | undefined {
  let expectedOffset = 0;
  let actualOffset = 0;
  let hasExpected = expected.next();
  let hasActual = actual.next();
  for (let at = 0; hasExpected || hasActual; ) {
    const difference = (what: string): Difference => ({
      field: `${prefix}[${at}]${what}`,
      expected: hasExpected ? describeChange(expected, expectedOffset) : 'no change',
      actual: hasActual ? describeChange(actual, actualOffset) : 'no change',
      place: hasExpected
        ? { asId: expected.asId, gfn: expected.gfn + expectedOffset * expected.gfnStep }
        : { asId: actual.asId, gfn: actual.gfn + actualOffset * actual.gfnStep },
      agreed: at,
    });
    if (!hasExpected || !hasActual) return difference('');
    if (!expected.keepsFrame) return difference('.pfn');
    if (expected.asId !== actual.asId) return difference('.as_id');
    if (expected.gfn + expectedOffset * expected.gfnStep !== actual.gfn + actualOffset * actual.gfnStep) {
      return difference('.gfn');
    }
    if (expected.level !== actual.level) return difference('.level');
    if (((expected.oldMeaning ^ actual.oldMeaning) & oldMask) !== 0) return difference('.old');
    if (expected.newMeaning !== actual.newMeaning) return difference('.new');
    const expectedLeft = expected.count - expectedOffset;
    const actualLeft = actual.count - actualOffset;
    // Runs that step alike agree for as long as the shorter lasts.
    const same = expected.gfnStep === actual.gfnStep ? Math.min(expectedLeft, actualLeft) : 1;
    at += same;
    expectedOffset += same;
    actualOffset += same;
    if (expectedOffset === expected.count) {
      expectedOffset = 0;
      hasExpected = expected.next();
    }
    if (actualOffset === actual.count) {
      actualOffset = 0;
      hasActual = actual.next();
    }
  }
  return undefined;
}

function toFieldValue(value: unknown): FieldValue {
  if (typeof value === 'number') return value;
  if (typeof value === 'bigint') return normalise(value);
  if (typeof value === 'boolean') return value ? 1 : 0;
  return Number.NaN;
}

/** The compared events of a trace, each with its position among the changes that `counts` accepts. */
function* tracedEvents(trace: readonly TracedEvent[], actor: Actor): Generator<PlainEvent> {
  let pos = 0;
  for (const event of trace) {
    if (event.name === 'spte_changed') {
      const change = event as TracedChange;
      if (actor === 'all' || !isTracedInstall(change)) pos += change.count;
      continue;
    }
    const specification = Object.hasOwn(EVENT_FIELDS, event.name) ? EVENT_FIELDS[event.name] : undefined;
    if (specification === undefined) continue;
    const properties = event as unknown as Record<string, unknown>;
    yield {
      pos,
      name: event.name,
      fields: specification.map(([property]) => (property === undefined ? 0 : toFieldValue(properties[property]))),
    };
  }
}

function isTracedInstall(change: TracedChange): boolean {
  return change.old.class === 'nonpresent' && (change.new.class === 'table' || change.new.class === 'leaf');
}

/** Whether an event takes part in the comparison. */
function isCompared(event: PlainEvent, surroundings: Surroundings): boolean {
  if (event.name === 'req') return COMPARED_REQUESTS.has(Number(event.fields[0]));
  if (!HVA_EVENTS.has(event.name)) return true;
  return surroundings.overlapsSlot(event.fields[0], event.fields[1]);
}

function nextCompared(events: Iterator<PlainEvent>, surroundings: Surroundings): PlainEvent | undefined {
  for (let step = events.next(); !step.done; step = events.next()) {
    if (isCompared(step.value, surroundings)) return step.value;
  }
  return undefined;
}

function describeEvent(event: PlainEvent | undefined): string {
  if (event === undefined) return 'no event';
  const names = EVENT_FIELDS[event.name];
  const fields = event.fields.flatMap((value, k) => {
    const [property, kind] = names[k] ?? [`field ${k}`, 'whole'];
    return property === undefined ? [] : [`${property} ${kind === 'hex' ? value.toString(16) : value}`];
  });
  return `after ${event.pos} changes ${event.name}${fields.length === 0 ? '' : ` { ${fields.join(', ')} }`}`;
}

function compareEvents(
  expected: Iterator<PlainEvent>,
  actual: Iterator<PlainEvent>,
  surroundings: Surroundings,
): Difference | undefined {
  for (let at = 0; ; at++) {
    const want = nextCompared(expected, surroundings);
    const got = nextCompared(actual, surroundings);
    if (want === undefined && got === undefined) return undefined;
    let what: string | undefined;
    if (want === undefined || got === undefined) what = '';
    else if (want.name !== got.name) what = '.name';
    else if (want.pos !== got.pos) what = '.pos';
    else {
      const names = EVENT_FIELDS[want.name];
      const k = names.findIndex(
        ([property], index) => property !== undefined && want.fields[index] !== got.fields[index],
      );
      if (k >= 0) what = `.${want.name}.${names[k][0]}`;
      else if (want.fields.length !== names.length) what = `.${want.name}`;
    }
    if (what !== undefined) {
      const hvas = [want, got].flatMap((event) =>
        event !== undefined && HVA_EVENTS.has(event.name) ? [BigInt(event.fields[0])] : [],
      );
      const field = `events[${at}]${what}`;
      return { field, expected: describeEvent(want), actual: describeEvent(got), hvas, agreed: at };
    }
  }
}

/** Moves the positions of recorded events from all changes to those of the operation alone. */
function* operationPositions(events: Iterable<PlainEvent>, operation: RecordedOperation): Generator<PlainEvent> {
  const runs = new ChangeRuns(operation.changes);
  let passed = 0;
  let installs = 0;
  let more = runs.next();
  for (const event of events) {
    while (more && passed + runs.count <= event.pos) {
      passed += runs.count;
      if (isInstall(runs)) installs += runs.count;
      more = runs.next();
    }
    const inside = more && isInstall(runs) ? Math.max(0, event.pos - passed) : 0;
    yield { ...event, pos: event.pos - installs - inside };
  }
}

/** The flags of a leaf as the canonical text writes them: the SPTE without PFN, A and D. */
function canonicalFlags(meaning: number, level: number): string {
  let low = 0x805;
  if ((meaning & WRITABLE) !== 0) low |= 0x2;
  if (level > 1) low |= 0x80;
  if ((meaning & HOST_WRITABLE) !== 0) low |= 0x200;
  if ((meaning & MMU_WRITABLE) !== 0) low |= 0x400;
  return (meaning & EXECUTABLE) !== 0 ? low.toString(16) : `8000000000000${low.toString(16).padStart(3, '0')}`;
}

/** The canonical text of a list of leafs: maximal runs once A and D are left out. */
export function canonicalText(leafs: readonly TracedLeafs[]): string {
  const parts: string[] = [];
  let asId = -1;
  let level = 0;
  let gfn = 0;
  let count = 0;
  let flags = '';
  const finish = () => {
    if (count > 0) parts.push(`${asId}:${level}:${gfn.toString(16)}:${count.toString(16)}:${flags};`);
  };
  for (const run of leafs) {
    const runFlags = canonicalFlags(run.meaning, run.level);
    if (
      run.asId === asId &&
      run.level === level &&
      runFlags === flags &&
      gfn + count * 512 ** (level - 1) === run.gfn
    ) {
      count += run.count;
      continue;
    }
    finish();
    ({ asId, level, gfn, count } = run);
    flags = runFlags;
  }
  finish();
  return parts.join('');
}

/** The crc of the canonical text, as a recording writes it. */
export function canonicalCrc(leafs: readonly TracedLeafs[]): string {
  return crc32(canonicalText(leafs)).toString(16).padStart(8, '0');
}

function compareState(operation: RecordedOperation, outcome: Outcome, mask: number, differences: Difference[]): void {
  if (operation.tables !== undefined) pushUnequal(differences, 'tables', operation.tables, outcome.tables());
  if (operation.leafs === undefined && operation.h === undefined && operation.state === undefined) return;
  const leafs = outcome.leafs();
  if (operation.leafs !== undefined) {
    const counts = [0, 0, 0];
    for (const run of leafs) counts[run.level - 1] += run.count;
    for (const [k, name] of ['4K', '2M', '1G'].entries()) {
      pushUnequal(differences, `leafs.${name}`, operation.leafs[k], counts[k]);
    }
  }
  if (operation.h !== undefined) pushUnequal(differences, 'h', operation.h, canonicalCrc(leafs));
  if (operation.state !== undefined) {
    const recorded = operation.state.map(([asId, level, gfn, count, flags]) => ({
      asId,
      level,
      gfn,
      count,
      meaning: meaningOfSpte(flags, level),
    }));
    const difference = compareLeafs(recorded, leafs, mask);
    if (difference !== undefined) differences.push(difference);
  }
}

/** The first place where two ascending lists of leafs differ. */
function compareLeafs(
  expected: readonly TracedLeafs[],
  actual: readonly TracedLeafs[],
  mask: number,
): Difference | undefined {
  let expectedTaken = 0;
  let actualTaken = 0;
  for (let e = 0, a = 0; e < expected.length || a < actual.length; ) {
    const want = expected[e];
    const got = actual[a];
    const gfnOf = (run: TracedLeafs, taken: number) => run.gfn + taken * 512 ** (run.level - 1);
    const isSame =
      want !== undefined &&
      got !== undefined &&
      want.asId === got.asId &&
      want.level === got.level &&
      gfnOf(want, expectedTaken) === gfnOf(got, actualTaken) &&
      ((want.meaning ^ got.meaning) & mask) === 0;
    if (!isSame) {
      const describe = (run: TracedLeafs | undefined, taken: number) =>
        run === undefined
          ? 'no leaf'
          : `as ${run.asId} gfn ${gfnOf(run, taken)} level ${run.level}: ${describeMeaning(run.meaning)}`;
      const place = want === undefined ? gfnOf(got, actualTaken) : gfnOf(want, expectedTaken);
      return {
        field: 'state',
        expected: describe(want, expectedTaken),
        actual: describe(got, actualTaken),
        place: { asId: (want ?? got).asId, gfn: place },
      };
    }
    const same = Math.min(want.count - expectedTaken, got.count - actualTaken);
    expectedTaken += same;
    actualTaken += same;
    if (expectedTaken === want.count) {
      expectedTaken = 0;
      e++;
    }
    if (actualTaken === got.count) {
      actualTaken = 0;
      a++;
    }
  }
  return undefined;
}

function pushUnequal(
  differences: Difference[],
  field: string,
  expected: string | number | bigint | undefined,
  actual: string | number | bigint | undefined,
): void {
  if (expected !== actual) differences.push({ field, expected: render(expected), actual: render(actual) });
}

function render(value: string | number | bigint | undefined): string {
  if (value === undefined) return 'none';
  return typeof value === 'bigint' ? `0x${value.toString(16)}` : String(value);
}

function renderList(list: readonly (readonly (string | number)[])[] | undefined): string | undefined {
  return list === undefined ? undefined : JSON.stringify(list);
}

/** One name for the errnos that have two. */
function toErrno(name: string | undefined): string | undefined {
  return name === 'ENOTSUP' ? 'EOPNOTSUPP' : name;
}

/** Compares one operation. Returns its differences, at most one per field; none if all agree. */
export function compareOperation(
  operation: RecordedOperation,
  outcome: Outcome,
  surroundings: Surroundings,
): Difference[] {
  const differences: Difference[] = [];
  pushUnequal(differences, 'ret', operation.ret, outcome.ret);
  pushUnequal(differences, 'errno', toErrno(operation.errno), toErrno(outcome.errno));
  pushUnequal(differences, 'exits', renderList(operation.exits), renderList(outcome.exits));
  pushUnequal(differences, 'left_gpa', operation.leftGpa, outcome.leftGpa);
  pushUnequal(differences, 'left_size', operation.leftSize, outcome.leftSize);
  pushUnequal(differences, 'dirty', renderList(operation.dirty), renderList(outcome.dirty));

  const perActor =
    surroundings.secondVcpuRuns && operation.op !== 'pre_fault_memory' && operation.op !== 'guest_access';
  const oldMask = surroundings.secondVcpuRuns ? ~(ACCESSED | DIRTY) : ~0;
  const actors: readonly Actor[] = perActor ? ['operation', 'vcpu'] : ['all'];
  for (const actor of actors) {
    const expected: Runs = new ChangeRuns(operation.changes);
    const actual: Runs = new TracedRuns(outcome.trace);
    const changes = compareChanges(
      actor === 'all' ? expected : new ActorRuns(expected, actor),
      actor === 'all' ? actual : new ActorRuns(actual, actor),
      oldMask,
      actor === 'vcpu' ? 'spte_changes(vcpu1)' : 'spte_changes',
    );
    if (changes !== undefined) differences.push(changes);
  }
  const recordedEvents = plainEvents(operation.events, EVENT_KINDS);
  const events = compareEvents(
    perActor ? operationPositions(recordedEvents, operation) : recordedEvents,
    tracedEvents(outcome.trace, actors[0]),
    surroundings,
  );
  if (events !== undefined) differences.push(events);

  if (outcome.stats !== undefined) {
    for (const name of COMPARED_STATS) {
      pushUnequal(differences, `stats.${name}`, operation.stats[name] ?? 0, outcome.stats[name] ?? 0);
    }
    for (const name of Object.keys(operation.stats)) {
      if (!(COMPARED_STATS as readonly string[]).includes(name)) {
        pushUnequal(differences, `stats.${name}`, operation.stats[name], undefined);
      }
    }
  }
  compareState(operation, outcome, oldMask, differences);
  return differences;
}
