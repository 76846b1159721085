// Random system calls of the VMM on its own memory, with a slot over each part of it: the engine and the reference model fire
// the same notifier events and map the same pages at the same levels. What a call left behind shows in a pre-fault of
// everything at the end.
//
// EPTSIM_PROPERTY_RUNS and EPTSIM_PROPERTY_SEED: world.ts.

import fc from 'fast-check';
import { test } from 'vitest';
import { ANCHORS, type Command, config, type HostCall, type VmConfig } from './commands.ts';
import { commandText, RUNS, SEED, TIMEOUT_MS, World } from './world.ts';

/** Of each region the first pages are used: small enough for calls to meet. */
const USED_PAGES = 2048;

const HOST_RUNS = Math.ceil(RUNS / 8);
/** Of calls, one in this many is followed by a look at thousands of leaves; events are compared after each. */
const STATE_EVERY = 8;

interface Sequence {
  config: VmConfig;
  slots: Command[];
  commands: Command[];
}

// Small pages and huge pages of anonymous memory are where most of the rules are.
const region = fc.constantFrom(0, 0, 1, 1, 1, 2, 3);
const slot = fc.nat(ANCHORS.length - 1);
/** Where most calls begin and end, so that they meet: on bounds of 2M, beside them, and within. */
const POINTS = [0, 16, 512, 528, 1024, 1536, USED_PAGES] as const;
const place = fc.oneof(
  { weight: 9, arbitrary: fc.constantFrom(...POINTS) },
  { weight: 1, arbitrary: fc.nat(USED_PAGES) },
);
/** Pages from `start` to another place. */
const span = fc.tuple(place, place).map(([one, other]) => ({
  start: Math.min(one, other, USED_PAGES - 1),
  npages: Math.max(1, Math.abs(one - other)),
}));
const kind = fc.constantFrom('read' as const, 'write' as const, 'write' as const, 'exec' as const);

/** One slot in each window, so that none refuses another; two may show the guest the same pages. */
const slots = fc.tuple(
  ...ANCHORS.map((_, window) =>
    fc.record({
      op: fc.constant('createSlot' as const),
      id: fc.constant(window),
      asId: fc.constant(0),
      window: fc.constant(window),
      offset: fc.constantFrom(0, 0, 512, 7),
      npages: fc.constantFrom(USED_PAGES, USED_PAGES - 1),
      flags: fc.constantFrom(0, 0, 0, 1),
      region,
      hvaOffset: fc.constantFrom(0, 0, 512, 3),
      congruent: fc.constantFrom(true, true, false),
      gmem: fc.constant(null),
      gmemOffset: fc.constant(0),
    }),
  ),
);

/** What cuts, joins and fills areas more often than what empties them. */
const call = fc.constantFrom<HostCall[]>(
  ...(['mprotect', 'mprotect', 'mprotect', 'mprotect', 'HUGEPAGE', 'HUGEPAGE', 'HUGEPAGE', 'COLLAPSE'] as const),
  ...(['POPULATE_WRITE', 'POPULATE_WRITE', 'POPULATE_WRITE', 'POPULATE_READ', 'POPULATE_READ', 'COLLAPSE'] as const),
  ...(['DONTNEED', 'DONTNEED', 'mremap', 'mremap', 'khugepaged', 'pageIdleSet', 'access', 'FREE'] as const),
  ...(['munmap', 'remap', 'REMOVE', 'migrate', 'age', 'testAge'] as const),
);
const host = fc
  .record({
    op: fc.constant('host' as const),
    call,
    region,
    span,
    prot: fc.constantFrom(0, 1, 1, 3, 3, 3),
    step: fc.integer({ min: 1, max: 20 }),
    toRegion: region,
    to: place,
  })
  .map(({ span, ...rest }) => ({ ...rest, ...span }));
const preFault = fc
  .record({ op: fc.constant('preFault' as const), vcpu: fc.constant(0), slot, span })
  .map(({ span, ...rest }) => ({ ...rest, ...span }));
const access = fc.record({
  op: fc.constant('access' as const),
  vcpu: fc.constant(0),
  slot,
  page: fc.nat(USED_PAGES - 1),
  kind,
  isPrivate: fc.constant(null),
});

const sequence: fc.Arbitrary<Sequence> = fc.record({
  config: config.map((one): VmConfig => ({ ...one, type: 'default', filterForm: null, vcpus: 1 })),
  slots,
  commands: fc.array(
    fc.oneof({ weight: 8, arbitrary: host }, { weight: 1, arbitrary: preFault }, { weight: 1, arbitrary: access }),
    { minLength: 30, maxLength: 80, size: 'max' },
  ),
});

/** A pre-fault ends at the first page that is not to be had; the next one begins behind it. */
const PARTS = 8;
function preFaultAll(): Command[] {
  return ANCHORS.flatMap((_, window) =>
    Array.from({ length: PARTS }, (_, part) => ({
      op: 'preFault' as const,
      vcpu: 0,
      slot: window,
      start: (part * USED_PAGES) / PARTS,
      npages: USED_PAGES / PARTS,
    })),
  );
}

test(
  `${HOST_RUNS} sequences of system calls leave the host's memory and the guest's page tables alike`,
  () => {
    fc.assert(
      fc.property(sequence, (one) => {
        const all = [...one.slots, ...one.commands, ...preFaultAll()];
        try {
          const world = new World(one.config);
          for (const [k, command] of all.entries()) world.step(command, k % STATE_EVERY === 0);
          world.tearDown(false);
        } catch (error) {
          const text = [JSON.stringify(one.config), ...all.map((command, k) => `${k}: ${commandText(command)}`)];
          throw new Error(`${(error as Error).message}\n${text.join('\n')}`, { cause: error });
        }
      }),
      { numRuns: HOST_RUNS, ...SEED, verbose: 0 },
    );
  },
  TIMEOUT_MS,
);
