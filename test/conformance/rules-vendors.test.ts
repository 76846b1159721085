// What the page tables and their counters show of SNP. By the RMP: rules-snp.test.ts; the rules of TDX: rules-tdx.test.ts.

import { describe, expect, test } from 'vitest';
import type { KernelProfile, Vm } from '../../src/index.ts';
import { makeVm, PAGE } from '../support/make-vm.ts';
import { countersMoved, leavesOf } from '../support/observe.ts';

const PRIVATE = 8;
const SEAMCALLS = [
  'TDH.MEM.RANGE.BLOCK',
  'TDH.MEM.TRACK',
  'kicks',
  'TDH.MEM.PAGE.REMOVE',
  'TDH.PHYMEM.PAGE.WBINVD',
] as const;
const set = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });

describe('SNP', () => {
  // arch/x86/kvm/svm/sev.c: the pfn stays assigned and validated, a re-fault maps the same page
  test.each<KernelProfile>(['rfc-v4', 'linux-6.12', 'linux-6.16'])(
    'R-SNP-4 zap and re-fault keep content (%s)',
    (kernel) => {
      const vm = makeVm({
        type: 'snp',
        kernel,
        slots: [{ startGfn: 0, npages: 16, guestMemfd: true }],
        mappedPrivate: [4, 5, 6, 7],
      });
      expect(vm.unmapGfnRange({ slot: 0, start: 0, end: 16, attrFilter: 3 })).toBe(true);
      expect(leavesOf(vm)).toEqual([]);
      const moved = countersMoved(vm, () => vm.vcpus[0].access({ gpa: 4 * PAGE, kind: 'read', count: 4 }));
      expect(leavesOf(vm)).toEqual(['4..7 4K']);
      expect(moved.gmem_pages_allocated).toBeUndefined();
      // Even over to-shared and back, until guest_memfd is punched: then exactly these pages are lost.
      set(vm, 0, 16, 0);
      set(vm, 0, 16, PRIVATE);
      expect(vm.losses()).toMatchObject({ privatePagesLost: 0, pagesToAccept: 0 });
      const punched = countersMoved(vm, () => vm.slotFiles[0]?.punchHole(0, 16 * PAGE));
      expect(punched).toMatchObject({ private_pages_lost: 4, gmem_pages_freed: 4 });
      for (const name of SEAMCALLS) expect(vm.stats()[name], name).toBe(0);
    },
  );
});
