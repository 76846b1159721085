// Says where in a JSON text a value or the first syntax error lies.
//
// JSON.parse reports a position only sometimes, and never one for a value that is well formed but wrong.
// This scanner runs only after something failed, so it may be slow. It keeps no tree: it walks the text once.

/** A place inside a JSON value: object keys and array indexes, from the outside in. */
export type JsonPath = readonly (string | number)[];

/** Nesting beyond this is called a syntax error; recordings nest five deep. */
const DEPTH_MAX = 64;

class SyntaxStop extends Error {
  readonly offset: number;

  constructor(offset: number) {
    super('not JSON');
    this.offset = offset;
  }
}

class Scanner {
  private at = 0;
  private found = -1;
  private readonly text: string;
  private readonly path: JsonPath;

  constructor(text: string, path: JsonPath) {
    this.text = text;
    this.path = path;
  }

  /** Returns the offset of the value at `path`, or -1 if it is absent; throws SyntaxStop at a syntax error. */
  locate(): number {
    this.value(0, 0);
    this.blank();
    if (this.at < this.text.length) throw new SyntaxStop(this.at);
    return this.found;
  }

  private blank(): void {
    while (this.at < this.text.length && ' \t\r\n'.includes(this.text[this.at])) this.at++;
  }

  private expect(character: string): void {
    this.blank();
    if (this.text[this.at] !== character) throw new SyntaxStop(this.at);
    this.at++;
  }

  /** `matched` counts the leading path elements that lead here; -1 once the path was left. */
  private value(depth: number, matched: number): void {
    this.blank();
    if (depth > DEPTH_MAX) throw new SyntaxStop(this.at);
    if (matched === this.path.length && this.found < 0) this.found = this.at;
    const first = this.text[this.at];
    if (first === '{') this.object(depth, matched);
    else if (first === '[') this.array(depth, matched);
    else if (first === '"') this.string();
    else this.scalar();
  }

  private inner(matched: number, step: string | number): number {
    return matched >= 0 && matched < this.path.length && this.path[matched] === step ? matched + 1 : -1;
  }

  private object(depth: number, matched: number): void {
    this.at++;
    this.blank();
    if (this.text[this.at] === '}') {
      this.at++;
      return;
    }
    for (;;) {
      this.blank();
      const key = this.string();
      this.expect(':');
      this.value(depth + 1, this.inner(matched, key));
      this.blank();
      if (this.text[this.at] === '}') break;
      this.expect(',');
    }
    this.at++;
  }

  private array(depth: number, matched: number): void {
    this.at++;
    this.blank();
    if (this.text[this.at] === ']') {
      this.at++;
      return;
    }
    for (let index = 0; ; index++) {
      this.value(depth + 1, this.inner(matched, index));
      this.blank();
      if (this.text[this.at] === ']') break;
      this.expect(',');
    }
    this.at++;
  }

  private string(): string {
    const start = this.at;
    if (this.text[start] !== '"') throw new SyntaxStop(start);
    for (this.at++; this.at < this.text.length; this.at++) {
      const character = this.text[this.at];
      if (character === '\\') this.at++;
      else if (character === '"') {
        this.at++;
        try {
          return JSON.parse(this.text.slice(start, this.at)) as string;
        } catch {
          throw new SyntaxStop(start);
        }
      }
    }
    throw new SyntaxStop(this.text.length);
  }

  private scalar(): void {
    const scalar = /(?:true|false|null|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.+-])/y;
    scalar.lastIndex = this.at;
    if (!scalar.test(this.text)) throw new SyntaxStop(this.at);
    this.at = scalar.lastIndex;
  }
}

/**
 * Returns the 1-based column of the value at `path` in the JSON text, or of the first syntax error before it.
 * A path that is absent gives the column of the whole value.
 */
export function jsonColumn(text: string, path: JsonPath): number {
  try {
    const offset = new Scanner(text, path).locate();
    return Math.max(offset, 0) + 1;
  } catch (error) {
    if (error instanceof SyntaxStop) return error.offset + 1;
    throw error;
  }
}
