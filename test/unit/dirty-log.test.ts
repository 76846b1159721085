// The dirty log taken a leaf table at a time must leave what taking it word by word leaves: the trace shows each word, so
// a VM that traces goes word by word.

import { describe, expect, test } from 'vitest';
import type { Vm } from '../../src/index.ts';
import { makeVm, PAGE, SLOT_HVA } from '../support/make-vm.ts';
import { randomFrom } from '../support/random.ts';

const SLOT_PAGES = 5 * 512 + 192;
const LOG_DIRTY_PAGES = 1;

interface Case {
  name: string;
  /** The argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; 0 = not enabled. */
  manual: number;
  eagerPageSplit: boolean;
  startGfn: number;
  kind: 'anon4k' | 'thp';
  kernel?: 'linux-6.16';
}
const cases: Case[] = [
  { name: 'taken by KVM_GET_DIRTY_LOG', manual: 0, eagerPageSplit: true, startGfn: 0x800, kind: 'anon4k' },
  { name: 'protected by hand', manual: 1, eagerPageSplit: true, startGfn: 0x800, kind: 'anon4k' },
  { name: 'protected by hand, initially set', manual: 3, eagerPageSplit: true, startGfn: 0x800, kind: 'anon4k' },
  { name: 'without eager splits', manual: 3, eagerPageSplit: false, startGfn: 0x800, kind: 'anon4k' },
  { name: 'over huge pages', manual: 3, eagerPageSplit: true, startGfn: 0x800, kind: 'thp' },
  { name: 'over huge pages without eager splits', manual: 3, eagerPageSplit: false, startGfn: 0x800, kind: 'thp' },
  { name: 'up to the end of 1 GiB', manual: 3, eagerPageSplit: true, startGfn: 0x40000 - 1024, kind: 'anon4k' },
  { name: 'in a slot across tables', manual: 3, eagerPageSplit: true, startGfn: 0x840, kind: 'anon4k' },
  {
    name: 'on 6.16',
    manual: 3,
    eagerPageSplit: true,
    startGfn: 0x800,
    kind: 'anon4k',
    kernel: 'linux-6.16',
  },
];

function vmOf({ manual, eagerPageSplit, startGfn, kind, kernel }: Case, traceRecords: number): Vm {
  const vm = makeVm({
    traceRecords,
    eagerPageSplit,
    kernel,
    memory: SLOT_PAGES * PAGE,
    slots: [],
  });
  if (manual !== 0) vm.enableCap({ cap: 168, args: [manual] });
  const hva = SLOT_HVA + (startGfn % 512) * PAGE;
  vm.host.mmap({ hva, length: SLOT_PAGES * PAGE, kind });
  vm.setUserMemoryRegion({
    slot: 0,
    flags: LOG_DIRTY_PAGES,
    guestPhysAddr: startGfn * PAGE,
    memorySize: SLOT_PAGES * PAGE,
    userspaceAddr: hva,
  });
  return vm;
}

/** One random change, or a clear of random words, made alike on each VM. */
function step(vms: readonly Vm[], { startGfn, manual }: Case, random: () => number): void {
  const below = (limit: number) => Math.floor(random() * limit);
  const kind = below(8);
  const first = below(SLOT_PAGES);
  const count = Math.min([1, 3, 64, 512, SLOT_PAGES][below(5)]!, SLOT_PAGES - first);
  const word = below(4) === 0 ? 0 : below(SLOT_PAGES / 64);
  const words = Math.min([1, 8, 16, SLOT_PAGES / 64][below(4)]!, SLOT_PAGES / 64 - word);
  const patterns = [~0n, 1n, 1n << 63n, 0x5555_5555_5555_5555n, BigInt(below(2 ** 32)) << BigInt(below(32))];
  const pattern = BigInt.asUintN(64, patterns[below(patterns.length)]!);
  const bytes = Uint8Array.from({ length: words * 8 }, () => below(256));
  const isBytes = below(2) === 0;
  for (const vm of vms) {
    const start = startGfn + first;
    const write = kind === 0 || kind === 1;
    if (kind <= 2) vm.vcpus[0].access({ gpa: start * PAGE, kind: write ? 'write' : 'read', count });
    else if (kind === 3) vm.unmapGfnRange({ slot: 0, start, end: start + count });
    else if (kind === 4) vm.ageGfn({ slot: 0, start, end: start + count });
    else if (manual === 0) vm.getDirtyLog({ slot: 0 });
    else {
      const bitmap = isBytes ? bytes : pattern;
      vm.clearDirtyLog({ slot: 0, firstPage: word * 64, numPages: words * 64, bitmap });
    }
  }
}

describe('taken by tables as by words', () => {
  test.each(cases)('$name', (spec) => {
    const random = randomFrom(spec.name);
    for (let round = 0; round < 6; round++) {
      const vms = [vmOf(spec, 65_536), vmOf(spec, 0)];
      for (let at = 0; at < 25; at++) {
        step(vms, spec, random);
        const [byWord, byTable] = vms;
        byWord.trace();
        expect(byTable.stats(), `round ${round}, step ${at}`).toEqual(byWord.stats());
        expect(byTable.leafs()).toEqual(byWord.leafs());
        if (spec.manual !== 0) expect(byTable.getDirtyLog({ slot: 0 })).toEqual(byWord.getDirtyLog({ slot: 0 }));
        expect(byTable.check()).toEqual(byWord.check());
      }
    }
  });
});
