import type { Http2Stream } from 'node:http2';

/**
 * Calls `ended` when the peer ends its side with END_STREAM, and `closed` when nothing more can come because the stream is closed, by whomever.
 *
 * Node's 'end' event does not tell: it also comes when the peer resets the stream with NO_ERROR in mid-body, which would make a truncated body look whole, and
 * `aborted` is set when it resets the stream after a whole body, as RFC 9113 section 8.1 allows a server to. All versions from 20 to 26 push the null of an
 * END_STREAM while the stream is open, and that of a reset after they have marked it closed.
 */
export function onPeerEnd(stream: Http2Stream, ended: () => void, closed?: () => void): void {
  const push = stream.push.bind(stream);
  stream.push = (chunk: unknown, encoding?: BufferEncoding): boolean => {
    if (chunk !== null || stream.destroyed) return push(chunk, encoding);
    if (!stream.closed) ended();
    const isTaken = push(chunk, encoding);
    // Node goes on with the stream when this returns: it must not be destroyed before.
    if (stream.closed && closed !== undefined) process.nextTick(closed);
    return isTaken;
  };
}
