// Drives the engine and the reference model side by side, and compares what a user of the public API can see of both:
// results and errnos, counters, every event, leafs and tables, mixed regions, attributes.

import { createVmSync, type Vm } from '../../src/index.ts';
import { ModelError, meaning } from '../model/kernel.ts';
import { ModelVm } from '../model/model-vm.ts';
import type { Table } from '../model/page-tables.ts';
import { type AnyEvent, eventLines, meaningText } from '../support/events.ts';
import { checkInvariants } from '../support/invariants.ts';
import { isDebugBuild } from '../support/make-vm.ts';
import {
  ANCHORS,
  type AnyVm,
  type Command,
  newTarget,
  PAGE,
  perform,
  REGION_KINDS,
  REGION_PAGES,
  regionPage,
  type Sequence,
  type Target,
  type VmConfig,
  WINDOW_PAGES,
} from './commands.ts';

/**
 * How many sequences a run does (EPTSIM_PROPERTY_RUNS), and where it starts (EPTSIM_PROPERTY_SEED). The two builds start
 * apart, and each the same every time: what passed once passes again. Another seed looks further.
 */
export const RUNS = Number(process.env.EPTSIM_PROPERTY_RUNS ?? 1000);
export const SEED = {
  seed: Number(process.env.EPTSIM_PROPERTY_SEED ?? (process.env.EPTSIM_BUILD === 'debug' ? 1 : 2)),
};

/** As long as one test of that many may take: ten minutes for each 1,000. */
export const TIMEOUT_MS = Math.max(1, RUNS / 1000) * 10 * 60_000;

const LEAF_NAMES = ['4k', '2m', '1g'];
const COMPARED_STATS = [
  ...['pages_4k', 'pages_2m', 'pages_1g', 'nx_lpage_splits', 'remote_tlb_flush_requests', 'tlb_flush'],
  ...['pf_taken', 'pf_fixed', 'pf_emulate', 'pf_spurious', 'pf_fast', 'pf_mmio_spte_created'],
  ...LEAF_NAMES.flatMap((size) => [`leafs_zapped_direct_${size}`, `leafs_zapped_mirror_${size}`]),
  ...['gfns_zapped', 'gfns_zapped_outside_request', 'tables', 'tables_allocated', 'tables_freed'],
  ...['entries_visited', ...[1, 2, 3, 4, 5].map((level) => `entries_visited_l${level}`), 'yields'],
  ...['leafs_aged', 'leafs_write_protected', 'splits', 'invalidations', 'kvm_request_free_obsolete_roots'],
  ...['retries_hull', 'retries_seq', 'retries_frozen', 'attribute_xarray_ops'],
  ...['TDH.MEM.SEPT.ADD', 'TDH.MEM.PAGE.AUG', 'TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'kicks'],
  ...['TDH.MEM.PAGE.REMOVE', 'TDH.PHYMEM.PAGE.WBINVD', 'private_pages_lost', 'private_pages_to_accept'],
  ...['gmem_pages_allocated', 'gmem_pages_freed'],
];

/** For whoever looks for one difference behind another. */
export const ignoredStats = new Set<string>();

export function optionsOf(config: VmConfig): Record<string, unknown> {
  const { slotZapAll, filterForm, ...rest } = config;
  return { ...rest, quirks: { slotZapAll }, septVeDisable: false, ...(filterForm && { filterForm }) };
}

/** Without a trace the engine takes shorter ways than with one. */
export function makeEngine(config: VmConfig, isTraced = true): Vm {
  return createVmSync({
    memory: 2 ** 27,
    traceRecords: isTraced ? 1 << 16 : 0,
    debug: isDebugBuild,
    ...optionsOf(config),
  } as Parameters<typeof createVmSync>[0]);
}
export function makeModel(config: VmConfig): ModelVm {
  return new ModelVm(optionsOf(config));
}

export function prepare(target: Target): void {
  REGION_KINDS.forEach((kind, region) => {
    target.vm.host.mmap({ kind, hva: regionPage(region) * PAGE, length: REGION_PAGES * PAGE });
  });
}

export interface Outcome {
  value?: unknown;
  errno?: string;
}
export const isErrno = (error: unknown): error is { code: string } =>
  error instanceof ModelError || (error instanceof Error && error.name === 'KvmError');

/** Carries a command out; refusals become their errno, anything else is thrown on. */
export function attempt(target: Target, command: Command): Outcome {
  try {
    return { value: perform(target, command) };
  } catch (error) {
    if (isErrno(error)) return { errno: error.code };
    throw error;
  }
}

/** Commands that a vCPU does by itself: allowed while another's fault holds mmu_lock with its mirror entry FROZEN. */
const BY_VCPU = new Set<Command['op']>([
  'access',
  'accessAt',
  'preFault',
  'preFaultAt',
  'accept',
  'beginFault',
  'finishFault',
]);
const CHANGES_SLOTS = new Set<Command['op']>(['createSlot', 'deleteSlot', 'moveSlot', 'toggleLog']);
/** Counters that go on as long as a vCPU retries: each side gives up after its own number of times. */
const ENDLESS = /^(pf_|retries_|tlb_flush|entries_visited)/;

/** What of a result both sides must agree on, as text. */
function outcomeText(command: Command, outcome: Outcome): string {
  if (outcome.errno !== undefined) return outcome.errno === 'errno 13' ? 'EACCES' : outcome.errno;
  const { value } = outcome;
  if (command.op === 'createGmem') return 'a guest_memfd';
  if (value !== null && typeof value === 'object' && 'reason' in value) {
    const { reason, gpa, isWrite, errno, flags } = value as Record<string, unknown>;
    if (reason === 'done') return 'done';
    if (reason === 'memory_fault') return `memory_fault ${gpa} flags ${flags} ${errno ?? 'EFAULT'}`;
    if (reason === 'retry') return 'retry';
    if (reason === 've') return `ve ${gpa}`;
    if (reason === 'mmio') return `mmio ${gpa} ${isWrite}`;
    return `${reason} ${errno ?? ''}`;
  }
  return JSON.stringify(value, (_, part) => (typeof part === 'bigint' ? `${part}` : part)) ?? 'undefined';
}

/** Whether a vCPU gave up retrying: where the kernel's would go on for ever. */
function wasEndless(command: Command, outcome: Outcome): boolean {
  if (outcome.errno === 'EINTR' || outcomeText(command, outcome) === 'retry') return true;
  const isPreFault = command.op === 'preFault' || command.op === 'preFaultAt';
  return isPreFault && outcome.value !== undefined && (outcome.value as { size: bigint }).size > 0n;
}

/** The model has no RMP: rmp-against-model.test.ts compares that. */
const OF_THE_RMP = new Set(['rmp_make_private', 'rmp_make_shared', 'psmash', 'kvm_rmp_fault', 'map_gpa_range_exit']);

function linesOf(events: readonly AnyEvent[]): string[] {
  return events.filter(({ name }) => !OF_THE_RMP.has(name)).flatMap(eventLines);
}

/** Maximal runs of leafs, root by root (oldest first), as vm.leafs() gives them. */
function modelLeafs(vm: ModelVm): string[] {
  const runs: { head: string; gfn: number; count: number; end: number }[] = [];
  for (const root of [...vm.roots].reverse()) {
    const collect = (table: Table): void => {
      const pages = 512 ** (table.level - 1);
      for (let index = 0; index < 512; index++) {
        const entry = table.entries[index];
        if (entry.kind === 'table') collect(entry.table);
        if (entry.kind !== 'leaf') continue;
        const gfn = table.gfn + index * pages - (table.level === root.level ? root.bits : 0);
        const head = `${root.asId} ${root.kind} L${table.level} ${meaningText(meaning(entry))}`;
        const run = runs.at(-1);
        if (run && run.head === head && run.end === gfn) {
          run.count++;
          run.end += pages;
        } else runs.push({ head, gfn, count: 1, end: gfn + pages });
      }
    };
    collect(root.table);
  }
  return runs.map(({ head, gfn, count }) => `${head} ${gfn} x${count}`);
}
export function engineLeafs(vm: Vm): string[] {
  return vm
    .leafs()
    .map(
      ({ asId, root, level, gfn, count, spte }) => `${asId} ${root} L${level} ${meaningText(spte)} ${gfn} x${count}`,
    );
}

/** The leaves that the guest of a TD sees, in their states: of the engine its S-EPT, of the model what its mirror holds. */
function modelSept(vm: ModelVm): string[] {
  const runs: { state: string; gfn: number; count: number }[] = [];
  const collect = (table: Table): void => {
    for (let index = 0; index < 512; index++) {
      const entry = table.entries[index];
      if (entry.kind === 'table') collect(entry.table);
      if (entry.kind !== 'leaf') continue;
      const state = entry.pending ? 'PENDING' : 'MAPPED';
      const gfn = table.gfn + index;
      const run = runs.at(-1);
      if (run?.state === state && run.gfn + run.count === gfn) run.count++;
      else runs.push({ state, gfn, count: 1 });
    }
  };
  for (const root of vm.roots) if (root.kind === 'mirror') collect(root.table);
  return runs.map(({ state, gfn, count }) => `${state} ${gfn} x${count}`);
}
function engineSept(vm: Vm): string[] {
  if (vm.options.type !== 'tdx') return [];
  return vm.tdx.leafs().map(({ state, gfn, count }) => `${state} ${gfn} x${count}`);
}

/** Where two lists of lines part, with a few lines before. */
export function difference(what: string, engine: readonly string[], model: readonly string[]): string | null {
  for (let k = 0; k < Math.max(engine.length, model.length); k++) {
    if (engine[k] === model[k]) continue;
    const before = engine.slice(Math.max(0, k - 3), k).map((line) => `      ${line}`);
    return [`${what} differ at ${k}:`, ...before, `engine ${engine[k]}`, `model  ${model[k]}`].join('\n');
  }
  return null;
}

function compareCounters(engine: Record<string, number>, model: Record<string, number>): string | null {
  const differing = COMPARED_STATS.filter(
    (name) => (engine[name] ?? 0) !== (model[name] ?? 0) && !ignoredStats.has(name),
  );
  if (differing.length === 0) return null;
  const lines = differing.map((name) => `${name}: engine ${engine[name] ?? 0}, model ${model[name] ?? 0}`);
  return ['counters differ:', ...lines].join('\n');
}

export class World {
  readonly engine: Target;
  readonly model: Target;
  readonly config: VmConfig;

  constructor(config: VmConfig) {
    this.config = config;
    this.engine = newTarget(makeEngine(config), config);
    this.model = newTarget(makeModel(config), config);
    prepare(this.engine);
    prepare(this.model);
    this.drain();
  }

  private frozen: Command | null = null;

  private drain(): void {
    this.engine.vm.trace();
    this.model.vm.trace();
  }

  /** Both VMs do `command`; throws with what differs, in the state they come to only if that is to be compared now. */
  step(command: Command, comparesState = true): void {
    if (this.model.vm.dead) return;
    if (this.frozen && !BY_VCPU.has(command.op)) this.step(this.frozen);
    // A fault holds the memslots it looked at (SRCU): they change only after it.
    if (CHANGES_SLOTS.has(command.op)) this.settle();
    this.finishFaultsOf(command);
    const before: Uint8Array | null = command.op === 'bad' ? this.engine.vm.snapshot() : null;
    const engine = attempt(this.engine, command);
    // Both number their files alike.
    const made = this.engine.gmems.at(-1);
    if (command.op === 'createGmem' && made && engine.errno === undefined) this.model.vm.nextFd = made.fd;
    const model = attempt(this.model, command);
    if (command.op === 'finishFault') this.frozen = engine.value === 'frozen' ? command : null;
    if (wasEndless(command, engine)) this.forgiveRetries();
    const problems = [
      difference('results', [outcomeText(command, engine)], [outcomeText(command, model)]),
      difference('events', linesOf(this.engine.vm.trace()), linesOf(this.model.vm.trace())),
      // A VM that dies keeps what the fault had done before: pages of the file, for one.
      ...(this.model.vm.dead ? [difference('dead', [`${this.engine.vm.dead}`], ['true'])] : []),
      ...(comparesState && !this.model.vm.dead ? this.compareState() : []),
    ];
    if (before && engine.errno !== undefined && !sameBytes(before, this.engine.vm.snapshot())) {
      problems.push(`a call refused with ${engine.errno} changed the VM`);
    }
    const found = problems.filter((problem) => problem !== null);
    if (found.length > 0) throw new Error(`${found.join('\n')}\nafter ${commandText(command)}`);
  }

  /** Ends what the memslots would wait for: faults, and invalidations that have begun. */
  private settle(): void {
    const { vm } = this.model;
    while (this.model.faults.length > 0 && !vm.dead) this.step({ op: 'finishFault', fault: 0 });
    while (this.model.started.length > 0 && !vm.dead) this.step({ op: 'invalidateEnd' });
  }

  /** A vCPU does one thing after the other: what it began is finished before it does anything else. */
  private finishFaultsOf(command: Command): void {
    if (!('vcpu' in command) && command.op !== 'accept') return;
    const vcpu = 'vcpu' in command ? command.vcpu % this.config.vcpus : 0;
    for (;;) {
      const fault = this.model.faults.findIndex((one) => one.vcpu === vcpu);
      if (fault < 0 || this.model.vm.dead) return;
      this.step({ op: 'finishFault', fault });
    }
  }

  private forgiveRetries(): void {
    const stats: Record<string, number> = this.engine.vm.stats();
    for (const name of COMPARED_STATS) if (ENDLESS.test(name)) this.model.vm.counters.set(name, stats[name] ?? 0);
  }

  private compareState(): (string | null)[] {
    const { vm } = this.engine;
    const model: ModelVm = this.model.vm;
    return [
      compareCounters(vm.stats(), model.stats()),
      difference('invalidation', [JSON.stringify(vm.invalidate)], [JSON.stringify(model.invalidate)]),
      difference('leafs', engineLeafs(vm), modelLeafs(model)),
      difference('S-EPT', engineSept(vm), modelSept(model)),
      difference('mixed regions', this.mixed(vm), this.mixed(model)),
      difference('dead', [`${vm.dead}`], [`${model.dead}`]),
      ...checkInvariants(vm),
    ];
  }

  private mixed(vm: AnyVm): string[] {
    if (this.config.type === 'default') return [];
    const lines: string[] = [];
    for (const slot of this.model.slots) {
      for (let gfn = Math.ceil(slot.base / 512) * 512; gfn + 512 <= slot.base + slot.npages; gfn += 512) {
        if (vm.isMixed(slot.asId * 65_536 + slot.id, 2, gfn)) lines.push(`slot ${slot.id} 2M ${gfn}`);
      }
    }
    return lines;
  }

  /** Every attribute of the windows. */
  compareAttributes(): void {
    const of = (vm: AnyVm): string[] =>
      ANCHORS.flatMap((anchor) => {
        const lines: string[] = [];
        let value = -1;
        for (let gfn = anchor - 2 * WINDOW_PAGES; gfn < anchor + 3 * WINDOW_PAGES; gfn++) {
          const next = gfn < 0 ? 0 : vm.attributesOf(gfn);
          if (next !== value) lines.push(`${gfn}: ${next}`);
          value = next;
        }
        return lines;
      });
    const problem = difference('attributes', of(this.engine.vm), of(this.model.vm));
    if (problem) throw new Error(problem);
  }

  /** Closes the files and the VM, in that order or the other. */
  tearDown(vmFirst: boolean): void {
    this.settle();
    this.compareAttributes();
    if (this.model.vm.dead) return;
    const closeFiles = (): void => {
      this.engine.gmems.forEach((gmem, index) => {
        if (gmem.isOpen) this.step({ op: 'closeGmem', gmem: index });
      });
    };
    if (!vmFirst) closeFiles();
    const outcomes = [this.engine, this.model].map(({ vm }) => {
      try {
        vm.destroy();
        return 'destroyed';
      } catch (error) {
        if (isErrno(error)) return error.code;
        throw error;
      }
    });
    const problem =
      difference('destroy', [outcomes[0]], [outcomes[1]]) ??
      difference('events of destroy', linesOf(this.engine.vm.trace()), linesOf(this.model.vm.trace()));
    if (problem) throw new Error(problem);
    if (vmFirst) closeFiles();
  }
}

/** Gives up the faults that were begun and closes the files, so that their numbers are free for the next VM. */
export function cleanUp(target: Target): void {
  const vm: Vm = target.vm;
  // A dead VM refuses that too.
  if (!vm.dead) for (const { vcpu, id } of target.faults) vm.vcpus[vcpu].dropFault(id);
  for (const file of vm.guestMemfds) file.close();
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && Buffer.compare(a, b) === 0;
}

export function commandText(command: Command): string {
  const { op, ...rest } = command;
  return `${op} ${JSON.stringify(rest, (_, value) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value))}`;
}

/** Every command of a sequence, the ones that lay the ground first. */
export function commandsOf(sequence: Sequence): Command[] {
  const hasGmem = sequence.config.type !== 'default';
  return [
    ...(hasGmem ? [{ op: 'createGmem' as const, npages: sequence.gmemPages }] : []),
    ...sequence.first,
    ...sequence.commands,
  ];
}

export function sequenceText(sequence: Sequence): string {
  return [
    JSON.stringify(sequence.config),
    ...commandsOf(sequence).map((command, k) => `${k}: ${commandText(command)}`),
  ].join('\n');
}
