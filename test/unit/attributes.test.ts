// Attributes over regions of 2M that are private throughout, or in part, or not at all, against an array of gfns.

import { describe, expect, test } from 'vitest';
import { makeVm, PAGE } from '../support/make-vm.ts';
import { randomFrom } from '../support/random.ts';

const REGION = 512;
const GFNS = 6 * REGION;

describe('private gfns', () => {
  test('are those that were set last, whatever the ranges', () => {
    const random = randomFrom('attributes');
    const below = (limit: number) => Math.floor(random() * limit);
    // Ends at region borders, beside them and anywhere.
    const place = () => Math.min(GFNS, below(7) * REGION + [0, 0, 0, 1, REGION - 1, below(REGION)][below(6)]!);
    for (let round = 0; round < 8; round++) {
      const vm = makeVm({
        type: 'sw-protected',
        slots: [{ startGfn: 0, npages: GFNS, kind: 'shmem', guestMemfd: true }],
      });
      const expected = new Uint8Array(GFNS);
      for (let at = 0; at < 60; at++) {
        const [start, end] = [place(), place()].sort((a, b) => a - b) as [number, number];
        if (start === end) continue;
        const attributes = below(2) * 8;
        vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });
        expected.fill(attributes, start, end);
        const found = Uint8Array.from(expected, (_, gfn) => vm.attributesOf(gfn));
        expect(found, `round ${round}, step ${at}: [${start}, ${end}) to ${attributes}`).toEqual(expected);
        for (let gfn = 0; gfn < GFNS; gfn += REGION) {
          const isMixed = new Set(expected.subarray(gfn, gfn + REGION)).size === 2;
          expect(vm.isMixed(0, 2, gfn), `region of gfn ${gfn}`).toBe(isMixed);
        }
      }
    }
  });

  test('converted 2M at a time take a bit a region, in any order', () => {
    const vm = makeVm({ type: 'sw-protected', memory: 2 ** 40 });
    const convert = (region: number) =>
      vm.setMemoryAttributes({ address: region * REGION * PAGE, size: REGION * PAGE, attributes: 8 });
    convert(0);
    const before = vm.memoryUsed;
    for (let region = 2; region < 32_768; region += 2) convert(region);
    // 64 leaf tables with one plane each, where an entry of 16 bytes each would take 256 KiB.
    expect(vm.memoryUsed - before).toBeLessThanOrEqual(64 * 64 + 256);
    expect([vm.attributesOf(REGION * 100), vm.attributesOf(REGION * 101)]).toEqual([8, 0]);
    for (let region = 1; region < 32_768; region += 2) convert(region);
    expect(vm.memoryUsed - before).toBeLessThanOrEqual(64 * 64 + 256);
    expect(vm.attributesOf(REGION * 101)).toBe(8);
  });
});
