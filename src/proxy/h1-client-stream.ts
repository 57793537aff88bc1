import type { ProxyError } from '../core/errors.ts';
import type { RawHeaders } from '../core/headers.ts';
import type {
  BodyConsumer,
  BodySink,
  BodySource,
  ClientStream,
  RawDuplex,
  RequestHead,
  ResponseHead,
} from '../core/stream.ts';
import { isSafeField } from '../protocols/http1.ts';
import type { Http1RequestHead } from '../protocols/http1.ts';
import { H1Writer } from './h1-writer.ts';
import type { WriteFraming } from './h1-writer.ts';
import type { H1Connection } from './h1.ts';
import { NO_BODY } from './no-body.ts';

/** One request of an `H1Connection`. */
export class H1ClientStream implements ClientStream, BodySource {
  readonly request: RequestHead;
  readonly body: BodySource;
  readonly length: number | null;
  onClose: ((error: ProxyError) => void) | null = null;
  readonly #connection: H1Connection;
  readonly #version: '1.0' | '1.1';
  #consumer: BodyConsumer | null = null;
  #isCancelled = false;
  #sink: BodySink | null = null;
  #continued: boolean;
  #earlyFailure: ProxyError | null = null;

  constructor(connection: H1Connection, scheme: 'http' | 'https', head: Http1RequestHead) {
    this.#connection = connection;
    this.#version = head.version;
    this.length = head.framing.kind === 'none' ? 0 : head.framing.kind === 'length' ? head.framing.length : null;
    this.body = this.length === 0 ? NO_BODY : this;
    this.#continued = head.expect === null || head.version === '1.0';
    this.request = {
      httpVersion: head.version,
      method: head.method,
      scheme,
      authority: head.hosts[0] ?? null,
      target: head.target,
      headers: head.headers,
      upgrade: head.upgrade.includes('websocket') ? 'websocket' : null,
      expectsContinue: !this.#continued,
    };
  }

  /** Nothing but interim answers has been sent, and the client can take another. */
  get isUnanswered(): boolean {
    return this.#sink === null && this.#version === '1.1';
  }

  get hasReader(): boolean {
    return this.#consumer !== null || this.#isCancelled;
  }

  // BodySource
  start(consumer: BodyConsumer): void {
    this.#consumer = consumer;
    if (this.#earlyFailure !== null) consumer.fail(this.#earlyFailure);
    else this.#connection.readBody();
  }

  pause(): void {
    if (!this.#isCancelled) this.#connection.pauseReading();
  }

  resume(): void {
    this.#connection.resumeReading();
  }

  cancel(): void {
    if (this.#isCancelled) return;
    this.#isCancelled = true;
    this.#consumer = null;
    this.#connection.resumeReading();
  }

  bodyData(chunk: Buffer): void {
    this.#continued = true;
    this.#consumer?.data(chunk);
  }

  bodyEnd(trailers: RawHeaders): void {
    const consumer = this.#consumer;
    this.#consumer = null;
    consumer?.end(trailers);
  }

  bodyFail(error: ProxyError): void {
    const consumer = this.#consumer;
    this.#consumer = null;
    if (consumer !== null) consumer.fail(error);
    else this.#earlyFailure = error;
  }

  drained(): void {
    this.#sink?.onDrain?.();
  }

  /** The connection is gone. */
  closed(error: ProxyError): void {
    const consumer = this.#consumer;
    this.#consumer = null;
    const onClose = this.onClose;
    this.onClose = null;
    if (onClose !== null) onClose(error);
    else consumer?.fail(error);
  }

  inform(head: ResponseHead): void {
    if (this.#version === '1.0' || this.#sink !== null) return;
    if (head.status === 100) this.#continued = true;
    this.#connection.socket.write(headText(head, null, false, null), 'latin1');
  }

  respond(head: ResponseHead, length: number | null): BodySink {
    const { method } = this.request;
    // Nobody knows whether a client that was not told to continue will send its body: the connection cannot be used again.
    if (!this.#continued && !this.#connection.isRequestDone) this.#connection.closeAfterAnswer();
    let framing: WriteFraming;
    let declared: number | 'as_sent' | null = null;
    if (method === 'HEAD' || head.status === 304) {
      framing = { kind: 'none' };
      declared = 'as_sent';
    } else if (head.status === 204 || head.status < 200) {
      framing = { kind: 'none' };
    } else if (length === null) {
      if (this.#version === '1.1') framing = { kind: 'chunked' };
      else {
        framing = { kind: 'close' };
        this.#connection.closeAfterAnswer();
      }
    } else {
      framing = length === 0 ? { kind: 'none' } : { kind: 'length', length };
      declared = length;
    }
    const connection = this.#connection.mustClose ? 'close' : this.#version === '1.0' ? 'keep-alive' : null;
    const text = headText(head, declared, framing.kind === 'chunked', connection);
    return (this.#sink = new H1Writer(
      this.#connection.socket,
      {
        written: () => this.#finish(),
        broken: (error) => this.#connection.destroy(error),
        progress: (isKeepingUp) => this.#connection.wrote(isKeepingUp),
      },
      text,
      framing,
    ));
  }

  upgrade(head: ResponseHead): RawDuplex {
    const connection = this.#connection;
    connection.becomeRaw();
    connection.socket.write(
      headText(
        { ...head, status: 101, headers: [...head.headers, 'Upgrade', this.request.upgrade ?? ''] },
        null,
        false,
        'Upgrade',
      ),
      'latin1',
    );
    const source: BodySource = {
      length: null,
      start: (consumer) => {
        this.#consumer = consumer;
        connection.readRaw(consumer);
      },
      pause: () => connection.pauseReading(),
      resume: () => connection.resumeReading(),
      cancel: () => connection.readRaw(DROP),
    };
    const sink: BodySink = {
      onDrain: null,
      write: (chunk) => {
        const isKeepingUp = connection.socket.write(chunk);
        connection.wrote(isKeepingUp);
        return isKeepingUp;
      },
      end: () => connection.endSocket(),
      abort: (error) => connection.destroy(error),
    };
    this.#sink = sink;
    return { source, sink };
  }

  abort(error: ProxyError): void {
    this.onClose = null;
    this.#consumer = null;
    this.#connection.destroy(error);
  }

  #finish(): void {
    this.onClose = null;
    this.#connection.answered(this);
  }
}

const DROP: BodyConsumer = { data: () => undefined, end: () => undefined, fail: () => undefined };

/**
 * Text of a response head. `declared`: Content-Length to send, `as_sent` to keep whatever the server said (HEAD, 304), null for none.
 * Framing headers in `head` are replaced by what we really do.
 */
function headText(
  head: ResponseHead,
  declared: number | 'as_sent' | null,
  chunked: boolean,
  connection: string | null,
): string {
  const { headers } = head;
  const reason = /^[\t\x20-\x7e\x80-\xff]*$/.test(head.reason) ? head.reason : '';
  let text = `HTTP/1.1 ${head.status} ${reason}\r\n`;
  let hasLength = false;
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const name = headers[i] ?? '';
    const value = headers[i + 1] ?? '';
    if (name.length === 14 && name.toLowerCase() === 'content-length') {
      if (declared === null || hasLength) continue;
      hasLength = true;
      text += `${name}: ${declared === 'as_sent' ? value : String(declared)}\r\n`;
      continue;
    }
    if (name.length === 17 && name.toLowerCase() === 'transfer-encoding') continue;
    if (!isSafeField(name, value)) continue;
    text += `${name}: ${value}\r\n`;
  }
  if (typeof declared === 'number' && !hasLength) text += `Content-Length: ${declared}\r\n`;
  if (chunked) text += 'Transfer-Encoding: chunked\r\n';
  if (connection !== null) text += `Connection: ${connection}\r\n`;
  return `${text}\r\n`;
}
