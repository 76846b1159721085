import { describe, expect, test } from 'vitest';
import {
  ExpressionError,
  evaluate,
  namesIn,
  parseExpression,
  type Scope,
  type Value,
} from '../../src/scenario/expression.ts';

const names: Record<string, Value> = { size: 2 ** 36, share: 0.5, leaf: '2M', on: true, huge: 2n ** 63n };
const scope: Scope = {
  value: (name) => (Object.hasOwn(names, name) ? names[name] : undefined),
  names: () => Object.keys(names),
  hva: (gpa) => BigInt(gpa) + 2n ** 44n,
};
const value = (text: string): Value => evaluate(parseExpression(text), scope);

describe('a quantity', () => {
  test.each<[string, Value]>([
    ['4096', 4096],
    ['1_000', 1000],
    ['0x1000', 4096],
    ['4K', 4096],
    ['4KiB', 4096],
    ['1.5MiB', 1_572_864],
    ['64 + 1', 65],
    ['1GiB', 2 ** 30],
    ['8PiB', 2n ** 53n], // the first that a double might have rounded
  ])('%s', (text, expected) => {
    expect(value(text)).toBe(expected);
  });

  test('is exact up to any u64', () => {
    expect(value('0xffffffffffffffff')).toBe(2n ** 64n - 1n);
    expect(value('huge + 1')).toBe(2n ** 63n + 1n);
    expect(value('huge / 4096')).toBe(2 ** 51);
    expect(value('huge - huge')).toBe(0);
  });

  test.each(['4KB', '4Q', '0x10K', '5 GiB', '0xffff_ffff'])('%s is no quantity', (text) => {
    expect(() => value(text)).toThrow(ExpressionError);
  });
});

describe('an expression', () => {
  test.each<[string, Value]>([
    ['1 + 2 * 3', 7],
    ['(1 + 2) * 3', 9],
    ['10 - 2 - 3', 5],
    ['-2 * -3', 6],
    ['7 / 2', 3.5],
    ['8 % 3', 2],
    ['1 | 4', 5],
    ['size * (1 - share)', 2 ** 35],
    ["leaf == '2M' ? 'thp' : 'anon4k'", 'thp'],
    ['leaf != "4K"', true],
    ['size > 1GiB && !(share >= 1)', true],
    ['on || unknown > 1', true],
    ['min(3, 1, 2)', 1],
    ['max(1, huge)', 2n ** 63n],
    ['alignDown(4097, 4KiB)', 4096],
    ['alignUp(4097, 4KiB)', 8192],
    ['alignDown(4096.5, 4KiB)', 4096],
    ['alignUp(4096.5, 4KiB)', 8192],
    ['alignUp(4096, 4KiB)', 4096],
    ['floor(1.5) + ceil(1.5) + round(1.4)', 4],
    ['pages(1GiB)', 262_144],
    ['hva(4096)', 2n ** 44n + 4096n],
    ['PRIVATE', 8],
    ['GUEST_MEMFD | LOG_DIRTY_PAGES', 5],
    ['1 < 2 ? 3 < 4 ? 5 : 6 : 7', 5],
    ['true', true],
  ])('%s', (text, expected) => {
    expect(value(text)).toBe(expected);
  });

  test.each<[string, RegExp]>([
    ['', /ends too early/],
    ['1 +', /ends too early/],
    ['(1', /ends too early/],
    ['1 2', /unexpected '2'/],
    ['1 $ 2', /unexpected '\$'/],
    ['a = 1', /unexpected/],
    ['sise', /unknown name 'sise' \(known: size, share/],
    ['constructor', /unknown name/],
    ['__proto__', /unknown name/],
    ['toString()', /unknown function/],
    ['pages(1, 2)', /takes 1 values, not 2/],
    ['min()', /takes at least 1/],
    ['1 / 0', /division by zero/],
    ['1 % 0', /division by zero/],
    ["1 + 'a'", /needs a number/],
    ["1 == 'a'", /can't compare/],
    ['1 && true', /needs true or false/],
    ['1 ? 2 : 3', /needs true or false/],
    ['0.5 | 1', /whole numbers/],
    ['alignDown(1, 0)', /positive whole number/],
    ['1PiB * 1PiB * 1PiB', /too large/],
    ['9'.repeat(300), /too large/],
    ['1'.repeat(2000), /the limit is 1000/],
    [`${'('.repeat(100)}1${')'.repeat(100)}`, /nests deeper/],
    [`${'-'.repeat(100)}1`, /nests deeper/],
  ])('%s is refused', (text, message) => {
    expect(() => value(text)).toThrow(message);
  });

  test('names the names it uses, constants apart', () => {
    const tree = parseExpression("min(a, b) + (c == 'd' ? -e : PRIVATE) + hva(a)");
    expect(namesIn(tree).map(({ name }) => name)).toEqual(['a', 'b', 'c', 'e', 'a']);
  });
});
