// The end of dirty logging over tables that may give way to huge leaves, with a yield on the way: the engine, which changes
// everything before it counts its visits, and the model, which walks entry by entry, must flush at the same places.
//
// EPTSIM_PROPERTY_RUNS sets how many sequences one run does, EPTSIM_PROPERTY_SEED where it starts.

import fc from 'fast-check';
import { test } from 'vitest';
import { type Command, REGION_KINDS, type VmConfig } from './commands.ts';
import { RUNS as ALL_RUNS, SEED, TIMEOUT_MS, World } from './world.ts';

const RUNS = Math.ceil(ALL_RUNS / 10);

const CONFIG: VmConfig = {
  type: 'default',
  kernel: 'linux-6.16',
  filterForm: null,
  maxphyaddr: 52,
  gpaw: 48,
  slotZapAll: true,
  nxHugePages: false,
  eagerPageSplit: true,
  mmioCaching: true,
  hugepageGuard: true,
  vcpus: 1,
};

const page = fc.nat(2599);
const life = fc.record({
  kernel: fc.constantFrom('linux-6.16' as const, 'linux-6.16', 'linux-6.12'),
  type: fc.constantFrom('default' as const, 'sw-protected'),
  nxHugePages: fc.constantFrom(false, false, true),
  region: fc.constantFrom(REGION_KINDS.indexOf('thp'), REGION_KINDS.indexOf('hugetlb2m')),
  /** Of the slot's first gfn: aligned to 2M, or not. */
  offset: fc.constantFrom(-1024, -512, 0, 0, 7, 511),
  npages: fc.integer({ min: 600, max: 2600 }),
  written: fc.array(page, { minLength: 1, maxLength: 8 }),
  /** Where each of the walks yields. */
  yields: fc.array(page, { minLength: 1, maxLength: 3 }),
});

test(
  `${RUNS} recoveries of huge pages, with yields, are the same on the engine and on the model`,
  () => {
    fc.assert(
      fc.property(life, ({ kernel, type, nxHugePages, region, offset, npages, written, yields }) => {
        const world = new World({ ...CONFIG, kernel, type, nxHugePages });
        const place = { id: 0, asId: 0, window: 0, offset, npages, region, hvaOffset: 0, congruent: true };
        const commands: Command[] = [
          { op: 'createSlot', ...place, flags: 1, gmem: null, gmemOffset: 0 },
          ...yields.flatMap((yieldPage): Command[] => [
            ...written.map((at): Command => {
              return { op: 'access', vcpu: 0, slot: 0, page: at, kind: 'write', isPrivate: false };
            }),
            { op: 'yieldAt', slot: 0, page: yieldPage },
            { op: 'toggleLog', slot: 0 },
            { op: 'toggleLog', slot: 0 },
          ]),
        ];
        for (const command of commands) world.step(command);
        world.tearDown(true);
      }),
      { numRuns: RUNS, ...SEED, verbose: 0 },
    );
  },
  TIMEOUT_MS,
);
