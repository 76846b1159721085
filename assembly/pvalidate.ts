// PVALIDATE: an SNP guest says that it knows a page to be its own, or that it no longer does.
//
// The instruction walks the nested page tables like a read, then looks at the page's RMP entry. A hypervisor takes part
// only in the faults that it meets on the way: on a gfn that is not mapped, and, when it names 4K of a 2M entry, an RMP
// fault that splits the entry.
// Mirrors: PVALIDATE, AMD64 Architecture Programmer's Manual, volume 3; its faults are KVM's (vcpu.ts, sev.ts)

import { C_PAGES_VALIDATED, C_PF_FIXED, C_PF_SPURIOUS, C_PF_TAKEN, count, ctl, VM_SNP } from './control';
import { pagesOf } from './entry';
import { scratchFault } from './faults';
import { gmemAt } from './gmems';
import { endGfnOf, gfnToMemslot, Memslot } from './memslots';
import { faultAtOnce, initFault, RET_PF_MEMORY_FAULT, reserveFault } from './page_fault';
import { atEnd, atFlags, atLevel } from './page_table';
import { RMP_2M, RMP_ASSIGNED, rmpFlags, rmpGfn, rmpRunEnd, rmpValidate } from './rmp';
import { ACCESSED, KIND, PRESENT } from './spte';
import { EINTR, EINVAL, EIO, ENOMEM, STATUS_CAPACITY, STATUS_NO_HANDLE } from './status';
import {
  maxGfnExclusive,
  RET_PF_FIXED,
  RET_PF_RETRY,
  RET_PF_SPURIOUS,
  Root,
  rootAt,
  tdpMmuSetBits,
  tdpMmuWalk,
} from './tdp_mmu';
import { enterGuest, takeRmpFault } from './vcpu';
import { vcpuAt } from './vcpus';

export const PVALIDATE_DONE: i32 = 0;
/** FAIL_SIZEMISMATCH: 2M was asked for, and the RMP entry or the nested mapping is of 4K. */
export const PVALIDATE_SIZE_MISMATCH: i32 = 1;
export const PVALIDATE_MEMORY_FAULT: i32 = 2;
export const PVALIDATE_ERROR: i32 = 3;
/** An RMP fault that KVM resolves nothing of comes again and again. */
export const PVALIDATE_RETRY: i32 = 4;

function endWith(outcome: i32, gfn: u64, error: i32, changed: u64, unchanged: u64): i32 {
  ctl.result0 = <f64>gfn;
  ctl.result1 = <f64>changed;
  ctl.result2 = <f64>unchanged;
  ctl.result3 = <f64>error;
  return outcome;
}

/**
 * One PVALIDATE after the other, each of `level` (1 or 2), over [startGfn, endGfn); stops at the first that is not done.
 * Returns PVALIDATE_*, with where it stopped in result0, the pages whose validated bit changed in result1, those that had
 * it so before (the carry flag) in result2, an error in result3; or a negative status.
 */
export function vcpuPvalidate(index: u32, startGfn: u64, endGfn: u64, level: i32, validate: u32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  const step = pagesOf(level);
  if (ctl.vmType != VM_SNP || endGfn <= startGfn || endGfn > maxGfnExclusive(0)) return -EINVAL;
  if (((startGfn | endGfn) & (step - 1)) != 0) return -EINVAL;
  const vcpu = vcpuAt(index);
  let changed: u64 = 0;
  let unchanged: u64 = 0;
  let gfn = startGfn;
  // Attempts at one page that got nowhere.
  let attempts = 0;
  while (gfn < endGfn) {
    if (!reserveFault()) {
      return gfn == startGfn && attempts == 0
        ? STATUS_CAPACITY
        : endWith(PVALIDATE_ERROR, gfn, -ENOMEM, changed, unchanged);
    }
    const entered = enterGuest(vcpu);
    if (entered != 0) return endWith(PVALIDATE_ERROR, gfn, entered, changed, unchanged);
    if (attempts == 16) return endWith(PVALIDATE_RETRY, gfn, 0, changed, unchanged);
    attempts++;
    const root = rootAt(vcpu.root - 1);
    tdpMmuWalk(root, gfn);
    const flags = atFlags;
    if ((flags & PRESENT) == 0 || (flags & KIND) == 0) {
      const error = mapPrivate(index, root, gfn, endGfn, level);
      if (error > 0) return endWith(PVALIDATE_MEMORY_FAULT, gfn, -error, changed, unchanged);
      if (error < 0) return endWith(PVALIDATE_ERROR, gfn, error, changed, unchanged);
      continue;
    }
    const mappedLevel = atLevel;
    const slot = gfnToMemslot(0, gfn);
    if (slot === null || slot.gmem == 0) return endWith(PVALIDATE_ERROR, gfn, -EIO, changed, unchanged);
    const gmem = gmemAt(slot.gmem - 1);
    const delta = slot.baseGfn - slot.gmemPgoff;
    const page = gfn - delta;
    const entry = rmpFlags(gmem, page);
    const isHuge = (entry & RMP_2M) != 0;
    const isMine = (entry & RMP_ASSIGNED) != 0 && rmpGfn(gmem, page, entry) == gfn;
    if (isMine && level == 2 && (!isHuge || mappedLevel == 1)) {
      return endWith(PVALIDATE_SIZE_MISMATCH, gfn, 0, changed, unchanged);
    }
    if (!isMine || isHuge != (level == 2)) {
      const error = takeRmpFault(index, gfn, 0);
      if (error != 0) return endWith(PVALIDATE_MEMORY_FAULT, gfn, error, changed, unchanged);
      continue;
    }
    let end = min(min(atEnd, endGfn), endGfnOf(slot));
    end = rmpRunEnd(gmem, page, end - delta) + delta;
    if ((flags & ACCESSED) == 0) tdpMmuSetBits(root, gfn, end, ACCESSED);
    const pages = rmpValidate(gmem, page, end - delta, validate != 0);
    changed += pages;
    unchanged += end - gfn - pages;
    if (validate != 0) count(C_PAGES_VALIDATED, pages);
    gfn = end;
    attempts = 0;
  }
  return endWith(PVALIDATE_DONE, endGfn, 0, changed, unchanged);
}

/**
 * End of the gfns from `gfn` on, below `endGfn`, that PVALIDATE 4K gets through one by one once they are mapped: 4K pages of a
 * file without 2M folios whose RMP entries name them, or will.
 */
function passableEnd(slot: Memslot, gfn: u64, endGfn: u64): u64 {
  const gmem = gmemAt(slot.gmem - 1);
  const delta = slot.baseGfn - slot.gmemPgoff;
  const page = gfn - delta;
  const entry = rmpFlags(gmem, page);
  // An entry from where the file was bound before stops it.
  if (gmem.folioOrder != 0 || (entry != 0 && rmpGfn(gmem, page, entry) != gfn)) return gfn + 1;
  return rmpRunEnd(gmem, page, min(endGfn, endGfnOf(slot)) - delta) + delta;
}

/**
 * The nested faults that PVALIDATE takes at `gfn` and, where it gets there, at those behind it. Returns 0 to try again,
 * -errno, or the positive errno of a KVM_EXIT_MEMORY_FAULT.
 */
function mapPrivate(index: u32, root: Root, gfn: u64, endGfn: u64, level: i32): i32 {
  const fault = scratchFault();
  initFault(fault, index, gfn, 0, 1, false);
  const slot = gfnToMemslot(0, gfn);
  if (level == 1 && slot !== null && slot.gmem != 0) {
    fault.limitPages = <u32>min(passableEnd(slot, gfn, endGfn) - gfn, 0xffffffff);
  }
  count(C_PF_TAKEN, 1);
  let result = faultAtOnce(fault);
  if (result == RET_PF_MEMORY_FAULT) return -fault.error;
  if (result == RET_PF_RETRY) return -EINTR;
  if (result < 0) return result;
  if (result == RET_PF_SPURIOUS) {
    count(C_PF_SPURIOUS, 1);
  } else if (result == RET_PF_FIXED) {
    tdpMmuWalk(root, gfn);
    const faults = atLevel > 1 ? 1 : max(fault.runPages, 1);
    count(C_PF_FIXED, faults);
    count(C_PF_TAKEN, faults - 1);
  }
  return 0;
}
