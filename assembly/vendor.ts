// What the vendors do differently when a range is zapped: one small interface, four implementations.
//
//                                  default     sw-protected  snp                       tdx
//   vendorRootsOfRange()           direct      direct        direct                    by the filter form
//   vendorZapsForAttributes()      (no attr.)  yes           not under the RFC         yes
//   vendorSplitForZap()            –           –             –                         by the zap policy
//   vendorGmemPrepare()            –           –             RMP: private              –
//   vendorGmemInvalidate()         –           –             RMP: shared               –
//   vendorPrivateMaxMappingLevel() as the folio  as the folio  as the RMP entry        4K
//
// What a range says about the mappings it means (its selector) stands here too, as the vendor is who reads it.
// Mirrors: struct kvm_gfn_range (include/linux/kvm_host.h), the set_memory_attributes callback of the RFC's v3 (spec 2.5)

import {
  ctl,
  FORM_ATTR_FILTER,
  FORM_GMEM_IN_PLACE,
  FORM_GMEM_V13,
  FORM_RFC_V4,
  FORM_TDX_V18,
  VM_SNP,
  VM_TDX,
  ZAP_SPLIT_BOUNDARY,
  ZAP_WHOLE_LEAF,
} from './control';
import { Gmem } from './gmems';
import { PRODUCER_GMEM_RELEASE, PRODUCER_SLOT } from './losses';
import { Memslot } from './memslots';
import { atEnd, atFlags, atLevel } from './page_table';
import { rmpForget, rmpHasRoom, rmpInvalidate, rmpLevel, rmpPrepare, rmpRunEnd, wantRmp } from './rmp';
import { PRESENT } from './spte';
import {
  findRoot,
  ROOT_MIRROR,
  ROOTS_BOTH,
  ROOTS_DIRECT,
  ROOTS_MIRROR,
  Root,
  tdpMmuCountFault,
  tdpMmuCountWalk,
  tdpMmuSplitMirror,
  tdpMmuWalk,
} from './tdp_mmu';
import { tdxSeptSplit } from './tdx';
import { TD_TEARDOWN, TDX_SUCCESS } from './tdx_module';

export const KVM_FILTER_SHARED: u32 = 1;
export const KVM_FILTER_PRIVATE: u32 = 2;
/** The selector of a range, one word: attr_filter in bits 0-1, may_block 2, only_private 3, only_shared 4. */
export const MAY_BLOCK: u32 = 4;
export const ONLY_PRIVATE: u32 = 8;
export const ONLY_SHARED: u32 = 16;

/** What each producer puts into the selector (spec 2.3). */
export const SELECT_NOTIFIER: u32 = KVM_FILTER_SHARED | ONLY_SHARED;
export const SELECT_GMEM: u32 = KVM_FILTER_PRIVATE | ONLY_PRIVATE | MAY_BLOCK;

export const KVM_MEMORY_ATTRIBUTE_PRIVATE: u64 = 8;

/** Set attributes: the bools are both false, the filter names the mapping that the new value leaves behind. */
export function selectAttributes(attributes: u64): u32 {
  return MAY_BLOCK | (attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE ? KVM_FILTER_SHARED : KVM_FILTER_PRIVATE);
}

/**
 * The kinds of roots that a range with this selector works on (a set of ROOTS_*), spec 2.4. One tree is meant whatever
 * the selector holds, except on a TD.
 */
export function vendorRootsOfRange(selector: u32, attributes: u64): u32 {
  return ctl.vmType == VM_TDX ? tdxRootsOfRange(selector, attributes) : ROOTS_DIRECT;
}

/** Mirrors: kvm_gfn_range_filter_to_root_types() for form E; the messages and code of the other forms. */
function tdxRootsOfRange(selector: u32, attributes: u64): u32 {
  const onlyPrivate = (selector & ONLY_PRIVATE) != 0;
  const onlyShared = (selector & ONLY_SHARED) != 0;
  const toPrivate = (attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0;
  switch (ctl.filterForm) {
    case FORM_RFC_V4:
      if (onlyPrivate) return onlyShared ? ROOTS_BOTH : ROOTS_MIRROR;
      if (onlyShared) return ROOTS_DIRECT;
      return toPrivate ? ROOTS_DIRECT : ROOTS_MIRROR;
    case FORM_TDX_V18:
      // The shared root is never skipped there.
      if (onlyPrivate) return ROOTS_BOTH;
      if (onlyShared) return ROOTS_DIRECT;
      return toPrivate ? ROOTS_DIRECT : ROOTS_BOTH;
    case FORM_GMEM_V13:
      if (onlyPrivate) return ROOTS_MIRROR;
      return onlyShared ? ROOTS_DIRECT : ROOTS_BOTH;
    case FORM_GMEM_IN_PLACE:
    case FORM_ATTR_FILTER: {
      // 0 selects nothing: the kernel warns.
      let roots: u32 = 0;
      if (selector & KVM_FILTER_SHARED) roots |= ROOTS_DIRECT;
      if (selector & KVM_FILTER_PRIVATE) roots |= ROOTS_MIRROR;
      return roots;
    }
    default:
      return ROOTS_BOTH;
  }
}

/**
 * Whether a conversion zaps the range before the attributes change. SNP under the RFC does nothing and returns false:
 * its work waits for guest_memfd.
 */
export function vendorZapsForAttributes(): bool {
  return !(ctl.vmType == VM_SNP && ctl.filterForm == FORM_RFC_V4);
}

/**
 * Before a zap of [startGfn, endGfn) in `roots`: splits the private huge leaves that the policy says, so that none is
 * zapped beyond the range. Requires: private leaves may be huge. Returns false if the module failed: nothing is to be zapped
 * then. Source: spec 7.10, 11.3.
 */
export function vendorSplitForZap(startGfn: u64, endGfn: u64, roots: u32): bool {
  if (ctl.zapPolicy == ZAP_WHOLE_LEAF || (roots & ROOTS_MIRROR) == 0) return true;
  // A file that is closed and a slot that goes leave nothing behind; without its key a TD's pages are reclaimed as they are.
  if (ctl.producer == PRODUCER_GMEM_RELEASE || ctl.producer == PRODUCER_SLOT) return true;
  if (ctl.tdState == TD_TEARDOWN) return true;
  const root = findRoot(ROOT_MIRROR, 0);
  if (root === null) return true;
  if (ctl.zapPolicy == ZAP_SPLIT_BOUNDARY) {
    if ((startGfn & 511) != 0 && !splitAt(root, startGfn)) return false;
    return (endGfn & 511) == 0 || splitAt(root, endGfn - 1);
  }
  tdpMmuCountWalk(root, startGfn, endGfn, 2);
  let gfn = startGfn;
  while (gfn < endGfn) {
    tdpMmuWalk(root, gfn);
    const end = atEnd;
    if ((atFlags & PRESENT) != 0 && atLevel == 2) {
      for (; gfn < min(end, endGfn); gfn = (gfn | 511) + 1) if (!splitAt(root, gfn)) return false;
    }
    gfn = end;
  }
  return true;
}

function splitAt(root: Root, gfn: u64): bool {
  if (ctl.zapPolicy == ZAP_SPLIT_BOUNDARY) tdpMmuCountFault(1);
  tdpMmuWalk(root, gfn);
  if ((atFlags & PRESENT) == 0 || atLevel != 2) return true;
  if (tdxSeptSplit(gfn & ~511) != TDX_SUCCESS) return false;
  tdpMmuSplitMirror(root, gfn);
  return true;
}

// --- Pages of guest_memfd --------------------------------------------------------------------------------------------

/** Whether a page of `gmem` can be prepared for the guest where `slot` binds it. */
export function vendorGmemHasRoom(gmem: Gmem, slot: Memslot): bool {
  return ctl.vmType != VM_SNP || rmpHasRoom(gmem, slot);
}

/** End of the run of pages from `page` on, below `limit`, that are in the same state for the vendor. */
export function vendorPrivateRunEnd(gmem: Gmem, page: u64, limit: u64): u64 {
  return ctl.vmType == VM_SNP ? rmpRunEnd(gmem, page, limit) : limit;
}

/** Private use of the resident pages [start, end), alike for the vendor. Mirrors: kvm_arch_gmem_prepare() */
export function vendorGmemPrepare(gmem: Gmem, slot: Memslot, start: u64, end: u64): void {
  if (ctl.vmType == VM_SNP) rmpPrepare(gmem, slot, start, end);
}

/** The file is new, or gone with all of its pages. */
export function vendorGmemForget(gmem: Gmem): void {
  if (ctl.vmType == VM_SNP) rmpForget(gmem);
}

/** Adds what vendorGmemInvalidate() of the range needs. */
export function wantGmemInvalidate(gmem: Gmem, start: u64, end: u64): void {
  if (ctl.vmType == VM_SNP) wantRmp(gmem, start, end);
}

/** The folios of pages [start, end) go back to the host. Mirrors: kvm_arch_gmem_invalidate() */
export function vendorGmemInvalidate(gmem: Gmem, start: u64, end: u64): void {
  if (ctl.vmType == VM_SNP) rmpInvalidate(gmem, start, end);
}

/** The level up to which a private page may be mapped. Mirrors: kvm_x86_private_max_mapping_level() */
export function vendorPrivateMaxMappingLevel(gmem: Gmem, page: u64): i32 {
  if (ctl.vmType == VM_TDX) return 1;
  return ctl.vmType == VM_SNP ? rmpLevel(gmem, page) : 3;
}
