/* A load client that costs little beside the server that it measures.
 *
 *     load PORT FILE STREAMS CONNECTIONS WINDOW FEEDS TOKENS [echo | PATH]
 *
 * Opens STREAMS Predict streams over CONNECTIONS connections to a server on this machine, and then, for every
 * number of seconds that it reads from standard input, keeps all of them busy for so long and prints one line
 * of JSON. Each stream has WINDOW messages under way (1: ping-pong), and sends its next when one is answered.
 *
 * FILE holds serialised requests, each behind its size (4 bytes, little-endian): first the one that every
 * stream opens with, then those that are sent over and over; streams begin at different ones. A request feeds
 * FEEDS sessions with TOKENS tokens each. It is answered when FEEDS results are done.
 *
 * Every reply is parsed as far as it takes to know that it is an answer: no error, no event, a prediction, and
 * the position that the session must have reached. With `echo` positions are not looked at. Whatever else
 * comes ends the program with a message and status 1.
 *
 * With the PATH of a unary method every message is a call of its own: STREAMS calls are under way at a time, and
 * one is answered when its message is whole and its status is OK. WINDOW, FEEDS and TOKENS are 1.
 *
 * HTTP/2 is nghttp2's; gRPC adds five bytes before each message, and the status in the trailers.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  PREFIX = 5,                   /* bytes before a gRPC message: 0 for "not compressed", and its size */
  WINDOW_BYTES = (1u << 31) - 1, /* HTTP/2's windows as wide as they go: they cost the server no thought */
  BUFFER_BYTES = 1 << 18,
  SILENCE_MILLISECONDS = 30000,
};

typedef struct {
  uint8_t *bytes; /* with its prefix */
  size_t size;
} Message;

typedef struct {
  int socket;
  nghttp2_session *http2;
} Connection;

typedef struct {
  Connection *connection;
  int32_t id;
  size_t next;         /* the message to send now, or next */
  size_t next_sent;    /* how many bytes of it are sent */
  size_t waiting;      /* messages that may be sent */
  uint8_t *reply;      /* what has come of a reply that is not whole */
  size_t reply_size, reply_room;
  uint64_t *fed;       /* for each handle, the feeds that are answered */
  size_t items;        /* results of the oldest message under way that have come */
  double *sent_at;     /* when each message under way was sent, a ring of WINDOW */
  size_t sent, answered; /* messages, the opening not counted */
  bool ok;             /* whether the status of a unary call is OK */
} Stream;

static size_t streams_count, connections_count, window, feeds, tokens;
static bool echo, unary;
static const char *path = "/cellstream.v1.PredictionService/Predict";
static Stream *streams;
static Connection *connections;
static Message *messages; /* the first one opens */
static size_t messages_count;

static bool sending;        /* whether an answer is followed by the next message */
static size_t under_way;    /* messages, of all streams */
static double now;          /* seconds */
static double *latencies;   /* of this run, seconds */
static size_t latencies_count, latencies_room;

/* ------------------------------------------------------------------ small things */

static void fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  vfprintf(stderr, format, values);
  va_end(values);
  fputc('\n', stderr);
  exit(1);
}

static void *room(void *old, size_t count, size_t size) {
  void *made = realloc(old, count * size);
  if (!made) fail("out of memory");
  return made;
}

static double seconds(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* ------------------------------------------------------------------ replies */

typedef struct {
  const uint8_t *at, *end;
} Bytes;

static uint64_t read_varint(Bytes *from) {
  uint64_t value = 0;
  for (int shift = 0; from->at < from->end && shift < 64; shift += 7) {
    uint8_t byte = *from->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return value;
  }
  fail("a reply is not protobuf");
  return 0;
}

/* Reads the next field of a message: its number, and its value or its bytes. */
static unsigned read_field(Bytes *from, uint64_t *value, Bytes *bytes) {
  uint64_t key = read_varint(from);
  uint64_t size = 0;
  switch (key & 7) {
    case 0: *value = read_varint(from); break;
    case 1: size = 8; break;
    case 2: size = read_varint(from); break;
    case 5: size = 4; break;
    default: fail("a reply is not protobuf");
  }
  if (size > (size_t)(from->end - from->at)) fail("a reply is not protobuf");
  *bytes = (Bytes){from->at, from->at + size};
  from->at += size;
  return (unsigned)(key >> 3);
}

/* Says what a google.rpc.Status in a reply says, and ends. */
static void refuse(Bytes status) {
  uint64_t code = 0;
  Bytes bytes, text = {NULL, NULL};
  while (status.at < status.end)
    if (read_field(&status, &code, &bytes) == 2) text = bytes;
  fail("the server refused: %.*s", (int)(text.end - text.at), (const char *)text.at);
}

/* cellstream.v1.Opened. */
static void take_opened(Bytes opened) {
  uint64_t value;
  Bytes bytes;
  while (opened.at < opened.end)
    if (read_field(&opened, &value, &bytes) == 8) refuse(bytes);
}

/* cellstream.v1.Result; whether it is the last of its feed. */
static bool take_result(Stream *stream, Bytes result) {
  uint64_t value, handle = 0, position = 0;
  bool done = false, predicted = false;
  Bytes bytes;
  while (result.at < result.end) switch (read_field(&result, &value, &bytes)) {
      case 1: handle = value; break;
      case 3: position = value; break;
      case 4: done = value; break;
      case 5: predicted = bytes.at < bytes.end; break;
      case 6: refuse(bytes);
    }
  if (!done) return false;
  if (!predicted) fail("a feed was answered without a prediction");
  if (handle >= feeds) fail("handle %lu was answered, which was never opened", handle);
  if (!echo && position != ++stream->fed[handle] * tokens)
    fail("position %lu after feed %lu of %lu tokens", position, stream->fed[handle], tokens);
  return true;
}

static void request(Stream *stream);

static void let_send(Stream *stream) {
  stream->waiting++;
  under_way++;
  if (unary)
    request(stream);
  else
    nghttp2_session_resume_data(stream->connection->http2, stream->id); /* nothing if it is sending already */
}

static void send_next(Stream *stream) {
  stream->sent_at[stream->sent++ % window] = now;
  let_send(stream);
}

/* Counts an answered message, and sends the next. */
static void take_answer(Stream *stream) {
  under_way--;
  if (!stream->sent) return; /* it was the opening */
  if (latencies_count == latencies_room)
    latencies = room(latencies, latencies_room = 2 * latencies_room + 1024, sizeof *latencies);
  latencies[latencies_count++] = now - stream->sent_at[stream->answered++ % window];
  if (sending) send_next(stream);
}

/* cellstream.v1.PredictResponse. Sessions answer in their own order: with a window, `FEEDS more results` stands
 * for an answered message, which it is on average. */
static void take_response(Stream *stream, Bytes response) {
  uint64_t value;
  Bytes bytes;
  while (response.at < response.end) {
    unsigned number = read_field(&response, &value, &bytes);
    if (number == 1)
      take_opened(bytes);
    else if (number != 2)
      fail("an event came, which nothing asked for");
    else if (!take_result(stream, bytes))
      continue;
    if (++stream->items < feeds) continue;
    stream->items = 0;
    take_answer(stream);
  }
}

/* ------------------------------------------------------------------ HTTP/2 */

static int on_data(nghttp2_session *http2, uint8_t flags, int32_t id, const uint8_t *data, size_t size,
                   void *user) {
  Stream *stream = nghttp2_session_get_stream_user_data(http2, id);
  (void)flags, (void)user;
  if (stream->reply_size + size > stream->reply_room)
    stream->reply = room(stream->reply, stream->reply_room = 2 * (stream->reply_size + size), 1);
  memcpy(stream->reply + stream->reply_size, data, size);
  stream->reply_size += size;
  size_t at = 0;
  while (stream->reply_size - at >= PREFIX) {
    const uint8_t *begin = stream->reply + at + PREFIX;
    uint32_t length;
    memcpy(&length, begin - 4, 4);
    length = ntohl(length);
    if (unary || stream->reply_size - at - PREFIX < length) break; /* a unary reply waits for its status */
    take_response(stream, (Bytes){begin, begin + length});
    at += PREFIX + length;
  }
  memmove(stream->reply, stream->reply + at, stream->reply_size -= at);
  return 0;
}

static int on_header(nghttp2_session *http2, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t value_size, uint8_t flags, void *user) {
  (void)flags, (void)user;
  Stream *stream = nghttp2_session_get_stream_user_data(http2, frame->hd.stream_id);
  if (unary && name_size == 11 && !memcmp(name, "grpc-status", 11) && value_size == 1 && *value == '0')
    stream->ok = true;
  else if (value_size && name_size >= 11 && (!memcmp(name, "grpc-status", 11) || !memcmp(name, "grpc-message", 11))) /* at the end */
    fprintf(stderr, "%.*s: %.*s\n", (int)name_size, (const char *)name, (int)value_size, (const char *)value);
  return 0;
}

static int on_close(nghttp2_session *http2, int32_t id, uint32_t error, void *user) {
  (void)user;
  Stream *stream = nghttp2_session_get_stream_user_data(http2, id);
  uint32_t length = 0;
  if (stream->reply_size >= PREFIX) memcpy(&length, stream->reply + 1, 4);
  if (unary && stream->ok && stream->reply_size >= PREFIX && stream->reply_size == PREFIX + ntohl(length)) {
    take_answer(stream);
    return 0;
  }
  fail("the server ended stream %d: %s", id, nghttp2_http2_strerror(error));
  return 0;
}

/* Fills a DATA frame with as much as fits of the message that is to be sent. */
static ssize_t on_frame(nghttp2_session *http2, int32_t id, uint8_t *buffer, size_t most, uint32_t *flags,
                        nghttp2_data_source *source, void *user) {
  Stream *stream = source->ptr;
  (void)http2, (void)id, (void)user;
  if (!stream->waiting) return NGHTTP2_ERR_DEFERRED;
  const Message *message = &messages[stream->next];
  size_t left = message->size - stream->next_sent;
  size_t size = left < most ? left : most;
  memcpy(buffer, message->bytes + stream->next_sent, size);
  stream->next_sent += size;
  if (size == left) {
    if (unary) *flags |= NGHTTP2_DATA_FLAG_EOF;
    stream->waiting--;
    stream->next_sent = 0;
    stream->next = stream->next ? 1 + stream->next % (messages_count - 1) /* round and round, never the first */
                                : 1 + (size_t)(stream - streams) % (messages_count - 1);
  }
  return (ssize_t)size;
}

/* Sends all that HTTP/2 has to say, in as few calls as it fits. */
static void flush(Connection *connection) {
  static uint8_t buffer[BUFFER_BYTES];
  size_t size = 0;
  const uint8_t *part;
  ssize_t part_size;
  do {
    part_size = nghttp2_session_mem_send(connection->http2, &part);
    if (part_size < 0) fail("HTTP/2: %s", nghttp2_strerror((int)part_size));
    if (size + (size_t)part_size > sizeof buffer || !part_size) {
      for (size_t at = 0; at < size;) {
        ssize_t sent = send(connection->socket, buffer + at, size - at, MSG_NOSIGNAL);
        if (sent < 0) fail("send: %s", strerror(errno));
        at += (size_t)sent;
      }
      size = 0;
    }
    memcpy(buffer + size, part, (size_t)part_size); /* a part is one frame, far smaller than the buffer */
    size += (size_t)part_size;
  } while (part_size);
}

static void connect_to(Connection *connection, uint16_t port) {
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int yes = 1;
  connection->socket = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(connection->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  if (connect(connection->socket, (struct sockaddr *)&address, sizeof address))
    fail("port %u: %s", port, strerror(errno));
  nghttp2_session_callbacks *callbacks;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
  nghttp2_session_client_new(&connection->http2, callbacks, NULL);
  nghttp2_session_callbacks_del(callbacks);
  nghttp2_settings_entry wide = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_BYTES};
  nghttp2_submit_settings(connection->http2, NGHTTP2_FLAG_NONE, &wide, 1);
  nghttp2_session_set_local_window_size(connection->http2, NGHTTP2_FLAG_NONE, 0, WINDOW_BYTES);
}

#define HEADER(name, value) \
  { (uint8_t *)name, (uint8_t *)value, sizeof name - 1, sizeof value - 1, NGHTTP2_NV_FLAG_NONE }

/* Begins the call of a stream: the one that it keeps, or its next one if calls are unary. */
static void request(Stream *stream) {
  const nghttp2_nv headers[] = {
      HEADER(":method", "POST"),
      HEADER(":scheme", "http"),
      {(uint8_t *)":path", (uint8_t *)path, 5, strlen(path), NGHTTP2_NV_FLAG_NONE},
      HEADER(":authority", "127.0.0.1"),
      HEADER("content-type", "application/grpc"),
      HEADER("te", "trailers"),
  };
  nghttp2_data_provider provider = {.source.ptr = stream, .read_callback = on_frame};
  stream->ok = false;
  stream->reply_size = 0;
  stream->id = nghttp2_submit_request(stream->connection->http2, NULL, headers,
                                      sizeof headers / sizeof *headers, &provider, stream);
  if (stream->id < 0) fail("HTTP/2: %s", nghttp2_strerror(stream->id));
}

static void open_stream(Stream *stream) {
  stream->fed = calloc(feeds, sizeof *stream->fed);
  stream->sent_at = calloc(window, sizeof *stream->sent_at);
  if (!stream->fed || !stream->sent_at) fail("out of memory");
  if (!unary) request(stream);
  let_send(stream);
}

/* ------------------------------------------------------------------ a run */

/* Sends what can be sent, waits for something to come, and takes it. While idle, waits for standard input too
 * (a server hears from an idle client when it asks by PING); whether there is some. */
static bool turn(bool idle) {
  static uint8_t buffer[BUFFER_BYTES];
  static struct pollfd *polled;
  polled = polled ? polled : room(NULL, connections_count + 1, sizeof *polled);
  for (size_t each = 0; each < connections_count; each++) {
    flush(&connections[each]);
    polled[each] = (struct pollfd){connections[each].socket, POLLIN, 0};
  }
  polled[connections_count] = (struct pollfd){idle ? STDIN_FILENO : -1, POLLIN, 0}; /* -1: none */
  if (poll(polled, connections_count + 1, idle ? -1 : SILENCE_MILLISECONDS) <= 0)
    fail("no answer for %d s", SILENCE_MILLISECONDS / 1000);
  for (size_t each = 0; each < connections_count; each++) {
    if (!polled[each].revents) continue;
    ssize_t size = recv(connections[each].socket, buffer, sizeof buffer, 0);
    if (size <= 0) fail("the server closed the connection");
    now = seconds(CLOCK_MONOTONIC);
    ssize_t taken = nghttp2_session_mem_recv(connections[each].http2, buffer, (size_t)size);
    if (taken < 0) fail("HTTP/2: %s", nghttp2_strerror((int)taken));
  }
  return polled[connections_count].revents;
}

static int compare(const void *left, const void *right) {
  double difference = *(const double *)left - *(const double *)right;
  return (difference > 0) - (difference < 0);
}

static double quantile_ms(double share) {
  size_t place = (size_t)(share * (double)latencies_count);
  return latencies_count ? 1e3 * latencies[place < latencies_count ? place : latencies_count - 1] : 0;
}

/* Keeps all streams busy for so long, waits for what is under way then, and says how it went. */
static void run(double duration) {
  size_t replies = 0, least = SIZE_MAX, most = 0;
  double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), began = now = seconds(CLOCK_MONOTONIC);
  for (size_t each = 0; each < streams_count; each++) streams[each].sent = streams[each].answered = 0;
  latencies_count = 0;
  sending = true;
  for (size_t each = 0; each < streams_count; each++)
    for (size_t message = 0; message < window; message++) send_next(&streams[each]);
  while (under_way) {
    sending = now - began < duration;
    turn(false);
  }
  double taken = now - began;
  cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
  for (size_t each = 0; each < streams_count; each++) {
    size_t answered = streams[each].answered;
    replies += answered;
    least = answered < least ? answered : least;
    most = answered > most ? answered : most;
  }
  qsort(latencies, latencies_count, sizeof *latencies, compare);
  printf("{\"replies\": %zu, \"tokens\": %zu, \"seconds\": %.9f, \"p50_ms\": %.6f, \"p99_ms\": %.6f, "
         "\"stream_replies_min\": %zu, \"stream_replies_max\": %zu, \"cpu_seconds\": %.9f}\n",
         replies, replies * feeds * tokens, taken, quantile_ms(0.50), quantile_ms(0.99), least, most, cpu);
  fflush(stdout);
}

static void read_messages(const char *path) {
  FILE *file = fopen(path, "rb");
  uint32_t size;
  if (!file) fail("%s: %s", path, strerror(errno));
  while (fread(&size, sizeof size, 1, file)) {
    messages = room(messages, messages_count + 1, sizeof *messages);
    Message *message = &messages[messages_count++];
    *message = (Message){room(NULL, PREFIX + size, 1), PREFIX + size};
    message->bytes[0] = 0;
    memcpy(message->bytes + 1, &(uint32_t){htonl(size)}, 4);
    if (size && !fread(message->bytes + PREFIX, size, 1, file)) fail("%s is cut short", path);
  }
  fclose(file);
  if (messages_count < 2) fail("%s has no message beside the opening", path);
}

int main(int count, char **arguments) {
  if (count < 8) fail("load PORT FILE STREAMS CONNECTIONS WINDOW FEEDS TOKENS [echo | PATH]");
  size_t *numbers[] = {&streams_count, &connections_count, &window, &feeds, &tokens};
  for (size_t each = 0; each < 5; each++)
    if (!(*numbers[each] = strtoul(arguments[3 + each], NULL, 10))) fail("every number is at least 1");
  echo = count > 8 && !strcmp(arguments[8], "echo");
  unary = count > 8 && !echo;
  if (unary) path = arguments[8];
  read_messages(arguments[2]);
  connections = calloc(connections_count, sizeof *connections);
  streams = calloc(streams_count, sizeof *streams);
  if (!connections || !streams) fail("out of memory");
  for (size_t each = 0; each < connections_count; each++)
    connect_to(&connections[each], (uint16_t)strtoul(arguments[1], NULL, 10));
  for (size_t each = 0; each < streams_count; each++) {
    streams[each].connection = &connections[each % connections_count];
    open_stream(&streams[each]);
  }
  while (under_way) turn(false);
  puts("{\"event\": \"open\"}");
  fflush(stdout);
  for (char line[64];;) {
    if (!turn(true)) continue;
    if (!fgets(line, sizeof line, stdin)) return 0;
    run(strtod(line, NULL));
  }
}
