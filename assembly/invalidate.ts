// Invalidations in progress: their count, the sequence number that ends with them, the hull of their gfns, and the two
// predicates by which a fault learns that it must retry.
// Mirrors: virt/kvm/kvm_main.c (kvm_mmu_invalidate_*), include/linux/kvm_host.h (mmu_invalidate_retry*)

import { C_INVALIDATIONS, count, ctl } from './control';
import { EV_INV_ADD, EV_INV_BEGIN, EV_INV_END, trace, trace2 } from './trace';

export const INVALID_GPA: u64 = ~(<u64>0);

/** Mirrors: kvm_mmu_invalidate_begin() */
export function mmuInvalidateBegin(): void {
  trace(EV_INV_BEGIN, 0, <u32>ctl.invInProgress, ctl.invSeq);
  count(C_INVALIDATIONS, 1);
  ctl.invInProgress++;
  if (ctl.invInProgress == 1) {
    ctl.invStart = INVALID_GPA;
    ctl.invEnd = INVALID_GPA;
  }
}

/** Widens the hull by [startGfn, endGfn). It never shrinks before the next begin from 0. */
export function mmuInvalidateRangeAdd(startGfn: u64, endGfn: u64): void {
  trace2(EV_INV_ADD, 0, 0, startGfn, endGfn, 0);
  if (ctl.invStart == INVALID_GPA) {
    ctl.invStart = startGfn;
    ctl.invEnd = endGfn;
  } else {
    ctl.invStart = min(ctl.invStart, startGfn);
    ctl.invEnd = max(ctl.invEnd, endGfn);
  }
}

/** Mirrors: kvm_mmu_invalidate_end(). An end without a begin marks the VM dead, as KVM_BUG_ON does. */
export function mmuInvalidateEnd(): void {
  trace2(EV_INV_END, 0, <u32>ctl.invInProgress, ctl.invSeq, ctl.invStart, ctl.invEnd);
  ctl.invSeq++;
  if (ctl.invInProgress == 0) {
    ctl.dead = 1;
    return;
  }
  ctl.invInProgress--;
}

/** Under mmu_lock. Bounds that are INVALID while an invalidation is in progress ask for a retry. */
export function mmuInvalidateRetryGfn(seq: u64, gfn: u64): bool {
  if (ctl.invInProgress > 0) {
    if (ctl.invStart == INVALID_GPA || ctl.invEnd == INVALID_GPA) return true;
    if (gfn >= ctl.invStart && gfn < ctl.invEnd) return true;
  }
  return ctl.invSeq != seq;
}

/** Without the lock: a hint that may err both ways. INVALID bounds do not match. */
export function mmuInvalidateRetryGfnUnsafe(seq: u64, gfn: u64): bool {
  if (ctl.invInProgress > 0 && gfn >= ctl.invStart && gfn < ctl.invEnd && ctl.invStart != INVALID_GPA) return true;
  return ctl.invSeq != seq;
}

/** The form without a gfn. Mirrors: mmu_invalidate_retry() */
export function mmuInvalidateRetry(seq: u64): bool {
  return ctl.invInProgress > 0 || ctl.invSeq != seq;
}
