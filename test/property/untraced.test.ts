// A trace only watches. One VM with a trace takes every fault by itself and step by step; one without may carry a plain
// fault through at once, and runs of them: both must come to the same results, counters, leafs and host pages.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  type AnyVm,
  type Command,
  command,
  config,
  newTarget,
  PAGE,
  perform,
  REGION_PAGES,
  regionPage,
  type Sequence,
  sequence,
  type Target,
  type VmConfig,
} from './commands.ts';
import {
  attempt,
  cleanUp,
  commandsOf,
  commandText,
  difference,
  engineLeafs,
  isErrno,
  makeEngine,
  prepare,
  RUNS,
  SEED,
  TIMEOUT_MS,
} from './world.ts';

const NUM_RUNS = Math.ceil(RUNS / 5);

// --- Sequences that stay in one place, so that faults meet what was done before them ---------------------------------

/** The window's middle lies between two tables of 512 gfns; the slot covers most of both, and the gfns beside it are none. */
const FIRST = -450;
const slotPages = 900;
const nearby = fc.integer({ min: FIRST - 30, max: FIRST + slotPages + 30 });
const inSlot = fc.nat(slotPages - 1);
const npages = fc.oneof(fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: slotPages }));
const vcpu = fc.nat(1);

/** A slot at FIRST, or a part of it, with host pages of `region` that lie alike or not. */
const slotAgain = (region: number, congruent: boolean) =>
  fc.record({
    op: fc.constant('createSlot' as const),
    id: fc.constant(0),
    asId: fc.constant(0),
    window: fc.constant(0),
    offset: fc.constantFrom(FIRST, FIRST, FIRST + 400),
    npages: fc.constantFrom(slotPages, slotPages, 301),
    flags: fc.constantFrom(0, 0, 0, 1, 2),
    region: fc.constant(region),
    hvaOffset: fc.constant(0),
    congruent: fc.constant(congruent),
    gmem: fc.constantFrom(0, null),
    gmemOffset: fc.constant(0),
  });

const hostCall = fc.constantFrom(
  ...(['POPULATE_WRITE', 'POPULATE_READ', 'DONTNEED', 'DONTNEED', 'HUGEPAGE', 'COLLAPSE', 'FREE', 'FREE'] as const),
  ...(['PAGEOUT', 'mprotect', 'mprotect', 'mprotect', 'remap', 'access', 'pageIdleSet'] as const),
);

/** Any command, but mostly the guest's accesses and what changes the memory under them. */
const denseCommand = (region: number, congruent: boolean) =>
  fc.oneof(
    {
      weight: 12,
      arbitrary: fc.record({
        op: fc.constant('accessAt' as const),
        vcpu,
        window: fc.constant(0),
        offset: nearby,
        kind: fc.constantFrom('read' as const, 'write', 'write', 'exec'),
        isPrivate: fc.constantFrom(null, null, null, true, false),
      }),
    },
    {
      weight: 8,
      arbitrary: fc.record({
        op: fc.constant('host' as const),
        call: hostCall,
        region: fc.constant(region),
        start: fc.nat(1500),
        npages: fc.oneof(npages, fc.constant(512)),
        prot: fc.constantFrom(0, 1, 3, 3),
        step: fc.constant(1),
      }),
    },
    {
      weight: 3,
      arbitrary: fc.oneof(
        fc.record({
          op: fc.constant('invalidateStart' as const),
          region: fc.constant(region),
          start: fc.nat(1500),
          npages,
          blockable: fc.boolean(),
        }),
        fc.constant({ op: 'invalidateEnd' as const }),
      ),
    },
    { weight: 2, arbitrary: slotAgain(region, congruent) },
    {
      weight: 3,
      arbitrary: fc.record({
        op: fc.constant('convert' as const),
        slot: fc.constant(0),
        start: inSlot,
        npages,
        isPrivate: fc.boolean(),
      }),
    },
    {
      weight: 2,
      arbitrary: fc.record({ op: fc.constantFrom('deleteSlot' as const, 'toggleLog'), slot: fc.constant(0) }),
    },
    { weight: 6, arbitrary: command },
  ) as fc.Arbitrary<Command>;

const dense = fc.tuple(config, fc.nat(3), fc.boolean()).chain(([vmConfig, region, congruent]) =>
  fc.record({
    config: fc.constant(vmConfig),
    gmemPages: fc.constant(2048),
    first: fc.array(slotAgain(region, congruent), { minLength: 1, maxLength: 1 }),
    commands: fc.array(denseCommand(region, congruent), { minLength: 8, maxLength: 40, size: 'max' }),
  }),
) as fc.Arbitrary<Sequence>;

// --- Both sides -------------------------------------------------------------------------------------------------------

type AccessCommand = Extract<Command, { op: 'access' | 'accessAt' }>;

/** How many pages an access of this test covers, up to two tables, and how many there are from one it touches to the next. */
const pagesOf = ({ offset }: { offset: number }): number => (offset % 3 === 0 ? 1 : Math.abs(offset * 7) % 700);
const strideOf = ({ offset }: { offset: number }): number => (offset % 5 === 0 ? 3 : 1);

/**
 * The access, and those to the pages behind it, past any that fails: each by a call of its own, or as many as one call does.
 */
function accesses({ vm, slots }: Target, what: AccessCommand, byOne: boolean): string[] {
  let gfn = 1024;
  if (what.op === 'accessAt') gfn += what.offset;
  else {
    if (slots.length === 0) return [];
    const slot = slots[what.slot % slots.length];
    gfn = slot.base + (what.page % slot.npages);
  }
  const how = { kind: what.kind, ...(what.isPrivate !== null && { private: what.isPrivate }) };
  const answers: string[] = [];
  const place = { offset: what.op === 'accessAt' ? what.offset : what.page };
  const end = gfn + pagesOf(place);
  const stride = strideOf(place);
  const vcpu = vm.vcpus[what.vcpu % vm.vcpus.length];
  while (gfn < end && !vm.dead) {
    const all = { count: Math.ceil((end - gfn) / stride), stride: stride * PAGE };
    const exit = vcpu.access({ gpa: gfn * PAGE, ...how, ...(!byOne && all) });
    gfn += exit.done * stride;
    if (exit.reason === 'done') continue;
    answers.push(textOf({ ...exit, done: 0 }));
    gfn += stride;
  }
  return answers;
}

function answersOf(target: Target, what: Command, byOne: boolean): string[] {
  try {
    if (what.op === 'access' || what.op === 'accessAt') return accesses(target, what, byOne);
    const value = perform(target, what);
    return what.op === 'createGmem' || what.op === 'beginFault' ? [] : [textOf(value)];
  } catch (error) {
    if (isErrno(error)) return [error.code];
    throw error;
  }
}

const textOf = (value: unknown): string =>
  JSON.stringify(value, (_, part) => (typeof part === 'bigint' ? `${part}` : part)) ?? 'nothing';

const statsOf = (vm: AnyVm): string[] => Object.entries(vm.stats()).map(([name, value]) => `${name} ${value}`);

/** What the host's pages are, as far as its calls tell: which are mapped. A frozen fault of a TD lets nobody ask. */
function hostPages({ vm }: Target): string[] {
  const lines: string[] = [];
  if (isBusy(vm)) return ['busy'];
  for (let region = 0; region < 4; region++) {
    for (let page = 0; page < REGION_PAGES; page += 8) {
      const hva = (regionPage(region) + page) * PAGE;
      lines.push(`${region} ${page}: ${vm.host.pageIdleSet({ hva, pages: 8 })}`);
    }
  }
  return lines;
}

function isBusy(vm: AnyVm): boolean {
  try {
    vm.host.pageIdleSet({ hva: regionPage(0) * PAGE, pages: 8 });
    return false;
  } catch (error) {
    if (isErrno(error) && error.code === 'EBUSY') return true;
    throw error;
  }
}

/** Both VMs do the sequence; returns how many faults were fixed. */
function compare(one: Sequence): number {
  const traced = newTarget(makeEngine(one.config), one.config);
  const untraced = newTarget(makeEngine({ ...one.config, traceRecords: 0 } as VmConfig), one.config);
  const differ = (name: string, of: (target: Target) => string[]) => {
    const problem = difference(`${name} (engine: untraced, model: traced)`, of(untraced), of(traced));
    return problem === null ? [] : [problem];
  };
  prepare(traced);
  prepare(untraced);
  const done: string[] = [];
  for (const what of commandsOf(one)) {
    done.push(commandText(what));
    // A TD is left after each call: there both do all accesses by one.
    const answers = [untraced, traced].map((target) => answersOf(target, what, target === traced && !target.isTd));
    traced.vm.trace();
    const problems = [
      ...differ('answers', (target) => answers[target === untraced ? 0 : 1]),
      ...differ('counters', ({ vm }) => statsOf(vm)),
      ...differ('leafs', ({ vm }) => engineLeafs(vm)),
      ...differ('invalidation', ({ vm }) => [textOf(vm.invalidate)]),
    ];
    if (problems.length > 0) throw new Error([...problems, textOf(one.config), ...done].join('\n'));
  }
  for (const target of [untraced, traced]) {
    while (target.started.length > 0) attempt(target, { op: 'invalidateEnd' });
  }
  const last = differ('host pages', hostPages);
  if (last.length > 0) throw new Error([...last, textOf(one.config), ...done].join('\n'));
  const fixed = untraced.vm.stats().pf_fixed;
  cleanUp(traced);
  cleanUp(untraced);
  return fixed;
}

test.each([
  ['anywhere', sequence as fc.Arbitrary<Sequence>],
  ['in one place', dense],
])(
  `${NUM_RUNS} sequences %s end alike with a trace and without one`,
  (_, sequences) => {
    let fixed = 0;
    fc.assert(
      fc.property(sequences, (one) => {
        fixed += compare(one);
      }),
      { numRuns: NUM_RUNS, ...SEED, verbose: 0 },
    );
    expect(fixed).toBeGreaterThan(NUM_RUNS * 20);
  },
  TIMEOUT_MS,
);
