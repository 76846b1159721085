// The VM that filter tests ask about: gfns 0 to 7 mapped shared, 8 to 15 private (on a TD in the mirror tree, accepted).

import type { CreateVmOptions, Vm } from '../../src/index.ts';
import { makeVm, PAGE, type TestVm } from './make-vm.ts';

export const SHARED_GFNS = [0, 1, 2, 3, 4, 5, 6, 7];
export const PRIVATE_GFNS = [8, 9, 10, 11, 12, 13, 14, 15];

/** A TD unless `options` say otherwise. Slot 0 is [0, 16), with a guest_memfd where the VM has private memory. */
export function makeMappedVm(options: Partial<CreateVmOptions> = {}): TestVm {
  const hasPrivateMem = options.type !== 'default';
  return makeVm({
    type: 'tdx',
    memory: 64 * PAGE,
    ...options,
    slots: [{ startGfn: 0, npages: 16, guestMemfd: hasPrivateMem }],
    mapped: hasPrivateMem ? SHARED_GFNS : [...SHARED_GFNS, ...PRIVATE_GFNS],
    mappedPrivate: hasPrivateMem ? PRIVATE_GFNS : [],
  });
}

export type Zapped = 'nothing' | 'shared' | 'private' | 'both';

const mappedGfns = (vm: Vm): number[] =>
  vm.leafs().flatMap(({ gfn, count }) => Array.from({ length: count }, (_, k) => gfn + k));

/**
 * Which of the two mappings a call zapped, wholly and nothing besides. On a TD each is one tree.
 * @throws if it zapped a part of one
 */
export function zappedBy(vm: Vm, call: () => unknown): Zapped {
  const before = mappedGfns(vm);
  if (before.length !== 16) throw new Error(`not mapped as makeMappedVm() does: ${before}`);
  call();
  const left = mappedGfns(vm);
  const shared = left.filter((gfn) => gfn < 8).length;
  const priv = left.length - shared;
  if (![0, 8].includes(shared) || ![0, 8].includes(priv)) throw new Error(`zapped a part: ${left} are left`);
  if (shared === 0) return priv === 0 ? 'both' : 'shared';
  return priv === 0 ? 'private' : 'nothing';
}
