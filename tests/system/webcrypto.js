// Section 18 of SPEC.md once more, on WebCrypto alone: makes again what crypto.json has, and opens what must not open.
// `recompute(vectors)` answers in the shape of the vectors; bytes are in hex.
"use strict";

const subtle = crypto.subtle;
const GCM_TAG = 16;
const PLAIN_BYTES = 65520;
const BUCKETS = [256, 1024, 4096, 16384, 65536];

class Refused extends Error {}

function refuse(outcome) {
  throw new Refused(outcome);
}

async function outcomeOf(opening) {
  try {
    await opening();
    return "opened";
  } catch (error) {
    if (error instanceof Refused) return error.message;
    throw error;
  }
}

// ── bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const ascii = (text) => new TextEncoder().encode(text);
const equal = (one, other) => hex(one) === hex(other);

function concat(...parts) {
  const arrays = parts.map((part) => new Uint8Array(part));
  const whole = new Uint8Array(arrays.reduce((size, array) => size + array.length, 0));
  let at = 0;
  for (const array of arrays) {
    whole.set(array, at);
    at += array.length;
  }
  return whole;
}

function integer(value, size) {
  return unhex(BigInt(value).toString(16).padStart(2 * size, "0"));
}

const u32 = (value) => integer(value, 4);
const u64 = (value) => integer(value, 8);
const numberOf = (bytes) => Number(BigInt("0x" + hex(bytes)));

function base64url(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function filled(bytes, size) {
  return concat(bytes, new Uint8Array(size - bytes.byteLength));
}

// ── primitives ──────────────────────────────────────────────────────────────────────────────────────────────────────

const sha256 = async (bytes) => new Uint8Array(await subtle.digest("SHA-256", bytes));

async function hkdf(secret, info, salt = new Uint8Array(32)) {
  const key = await subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
  return new Uint8Array(await subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt, info }, key, 256));
}

async function encrypt(key, iv, additionalData, plaintext) {
  const aes = await subtle.importKey("raw", key, "AES-GCM", false, ["encrypt"]);
  return new Uint8Array(await subtle.encrypt({ name: "AES-GCM", iv, additionalData }, aes, plaintext));
}

async function decrypt(key, iv, additionalData, ciphertext, outcome = "bad_seal") {
  const aes = await subtle.importKey("raw", key, "AES-GCM", false, ["decrypt"]);
  try {
    return new Uint8Array(await subtle.decrypt({ name: "AES-GCM", iv, additionalData }, aes, ciphertext));
  } catch {
    refuse(outcome);
  }
}

const seal = async (key, nonce, aad, plaintext) => concat([1], nonce, await encrypt(key, nonce, aad, plaintext));

function checkVersion(sealed, atLeast) {
  if (sealed.length === 0) refuse("malformed");
  if (sealed[0] !== 1) refuse("unknown_version");
  if (sealed.length < atLeast) refuse("malformed");
}

async function open(key, aad, sealed) {
  checkVersion(sealed, 1 + 12 + GCM_TAG);
  return decrypt(key, sealed.slice(1, 13), aad, sealed.slice(13));
}

async function openKey(key, aad, sealed) {
  const opened = await open(key, aad, sealed);
  return opened.length === 32 ? opened : refuse("malformed");
}

async function privateKey(seed) {
  const pkcs8 = concat(unhex("302e020100300506032b657004220420"), seed);
  return subtle.importKey("pkcs8", pkcs8, "Ed25519", true, ["sign"]);
}

async function publicKey(seed) {
  const { x } = await subtle.exportKey("jwk", await privateKey(seed));
  return Uint8Array.from(atob(x.replaceAll("-", "+").replaceAll("_", "/")), (character) => character.charCodeAt(0));
}

const sign = async (seed, message) => new Uint8Array(await subtle.sign("Ed25519", await privateKey(seed), message));

async function verifies(key, signature, message) {
  const imported = await subtle.importKey("raw", key, "Ed25519", false, ["verify"]);
  return subtle.verify("Ed25519", imported, signature, message);
}

// ── MessagePack, as far as contents need it ─────────────────────────────────────────────────────────────────────────

function unpack(bytes) {
  let at = 0;
  const take = (size) => bytes.slice(at, (at += size));
  const text = (size) => new TextDecoder("utf-8", { fatal: true }).decode(take(size));
  const list = (size) => Array.from({ length: size }, next);
  const map = (size) => Object.fromEntries(Array.from({ length: size }, () => [next(), next()]));
  function next() {
    const [type] = take(1);
    if (type < 0x80) return type;
    if (type < 0x90) return map(type - 0x80);
    if (type < 0xa0) return list(type - 0x90);
    if (type < 0xc0) return text(type - 0xa0);
    switch (type) {
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return hex(take(numberOf(take(1))));
      case 0xc5: return hex(take(numberOf(take(2))));
      case 0xcc: return numberOf(take(1));
      case 0xcd: return numberOf(take(2));
      case 0xce: return numberOf(take(4));
      case 0xcf: return numberOf(take(8));
      case 0xd9: return text(numberOf(take(1)));
      default: throw new Error(`no MessagePack for ${type}`);
    }
  }
  const value = next();
  if (at !== bytes.length) throw new Error("bytes behind the end");
  return value;
}

// ── people and keys ─────────────────────────────────────────────────────────────────────────────────────────────────

const thumbprint = ({ e, n }) => sha256(ascii(`{"e":"${e}","kty":"RSA","n":"${n}"}`));

async function fingerprint(userId, rsaThumbprint, signingKey) {
  const digest = await sha256(concat(ascii("orbital.v1.fingerprint\0"), userId, rsaThumbprint, signingKey));
  const digits = (BigInt("0x" + hex(digest.slice(0, 25))) % 10n ** 50n).toString().padStart(50, "0");
  return digits.match(/.{5}/g).join(" ");
}

async function person({ user_id, seed, public_key, rsa_key }) {
  const [signingKey, rsaThumbprint] = [await publicKey(unhex(seed)), await thumbprint(public_key)];
  const found = {
    signing_key: hex(signingKey),
    rsa_thumbprint: hex(rsaThumbprint),
    fingerprint: await fingerprint(unhex(user_id), rsaThumbprint, signingKey),
  };
  if (rsa_key) {
    const oaep = { name: "RSA-OAEP", hash: "SHA-256" };
    const key = await subtle.importKey("pkcs8", unhex(rsa_key), oaep, true, ["decrypt"]);
    const { kty, n, e, alg } = await subtle.exportKey("jwk", key);
    found.public_key = { kty, n, e, alg };
  }
  return found;
}

function contentKey(secret, groupId, epoch, kind, authorId) {
  return hkdf(secret, concat(ascii("orbital.v1.content\0"), u32(epoch), [kind], authorId), groupId);
}

const commitment = (secret, groupId, epoch) => hkdf(secret, concat(ascii("orbital.v1.commit\0"), u32(epoch)), groupId);

async function groupKey({ group_id, epoch, secret, content_keys }) {
  const [group, key] = [unhex(group_id), unhex(secret)];
  return {
    commitment: hex(await commitment(key, group, epoch)),
    content_keys: await each(content_keys, async ({ kind, author_id }) => ({
      key: hex(await contentKey(key, group, epoch, kind, unhex(author_id))),
    })),
  };
}

async function previous({ group_id, epoch, secret, nonce, previous_secret, previous_key, refused }) {
  const key = await hkdf(unhex(secret), ascii("orbital.v1.previous\0"));
  const aad = concat(unhex(group_id), u32(epoch));
  return {
    key: hex(key),
    aad: hex(aad),
    previous_secret: hex(await openKey(key, aad, unhex(previous_key))),
    previous_key: hex(await seal(key, unhex(nonce), aad, unhex(previous_secret))),
    refused: await each(refused, async (wrong) => ({
      outcome: await outcomeOf(() => openKey(key, aad, unhex(wrong.previous_key))),
    })),
  };
}

async function wraps({ group_id, epoch, wrapper, opened, refused }, people) {
  const from = people[wrapper];
  const labelFor = ({ user_id, rsa_thumbprint }) =>
    concat(ascii("orbital.v1.wrap\0"), unhex(group_id), u32(epoch), unhex(user_id + rsa_thumbprint + from.user_id));
  async function unwrap({ recipient, wrapped }) {
    const [raw, label] = [unhex(wrapped), labelFor(people[recipient])];
    checkVersion(raw, 1 + 16 + 64 + 1);
    if (hex(raw.slice(1, 17)) !== from.user_id) throw new Error("by somebody else");
    const message = concat(ascii("orbital.v1.wrapped\0"), label, raw.slice(81));
    if (!(await verifies(unhex(from.signing_key), raw.slice(17, 81), message))) refuse("forged_author");
    const oaep = { name: "RSA-OAEP", hash: "SHA-256" };
    const key = await subtle.importKey("pkcs8", unhex(people[recipient].rsa_key), oaep, false, ["decrypt"]);
    let secret;
    try {
      secret = await subtle.decrypt({ name: "RSA-OAEP", label }, key, raw.slice(81));
    } catch {
      refuse("bad_seal");
    }
    return secret.byteLength === 32 ? secret : refuse("malformed");
  }
  const agreed = await unwrap(opened[0]);
  const agreedCommitment = await commitment(agreed, unhex(group_id), epoch);
  async function check(wrap) {
    const own = await commitment(await unwrap(wrap), unhex(group_id), epoch);
    if (!equal(own, agreedCommitment)) refuse("wrong_key");
  }
  return {
    secret: hex(agreed),
    commitment: hex(agreedCommitment),
    opened: await each(opened, async (wrap) => ({
      label: hex(labelFor(people[wrap.recipient])),
      outcome: await outcomeOf(() => check(wrap)),
    })),
    refused: await each(refused, async (wrap) => ({ outcome: await outcomeOf(() => check(wrap)) })),
  };
}

// ── envelopes ───────────────────────────────────────────────────────────────────────────────────────────────────────

function aadOf({ kind, field, group_id, parent_id, object_id, author_id, epoch }) {
  return concat(ascii("orbital.v1"), [kind, field], unhex(group_id + parent_id + object_id + author_id), u32(epoch));
}

function keyAt({ kind, group_id, author_id, epoch }, secrets) {
  return contentKey(secrets[epoch], unhex(group_id), epoch, kind, unhex(author_id));
}

const signed = (aad, content) => concat(ascii("orbital.v1.content\0"), aad, content);

async function sealEnvelope(place, secrets, seed, nonce, content) {
  const aad = aadOf(place);
  const plaintext = concat(await sign(seed, signed(aad, content)), u32(content.length), content);
  const bucket = BUCKETS.find((size) => size >= plaintext.length);
  return seal(await keyAt(place, secrets), nonce, aad, filled(plaintext, bucket));
}

async function openEnvelope(place, secrets, signingKey, envelope) {
  const aad = aadOf(place);
  const plaintext = await open(await keyAt(place, secrets), aad, envelope);
  if (!BUCKETS.includes(plaintext.length)) refuse("malformed");
  const end = 68 + numberOf(plaintext.slice(64, 68));
  const fits = end <= plaintext.length && BUCKETS.find((size) => size >= end) === plaintext.length;
  if (!fits || plaintext.slice(end).some((byte) => byte !== 0)) refuse("malformed");
  const content = plaintext.slice(68, end);
  if (!(await verifies(signingKey, plaintext.slice(0, 64), signed(aad, content)))) refuse("forged_author");
  return content;
}

async function envelope({ place, author, content, nonce, envelope }, secrets, people) {
  const { seed, signing_key } = people[author];
  const opened = await openEnvelope(place, secrets, unhex(signing_key), unhex(envelope));
  return {
    aad: hex(aadOf(place)),
    content_key: hex(await keyAt(place, secrets)),
    content: hex(opened),
    says: unpack(opened),
    signature: hex(await sign(unhex(seed), signed(aadOf(place), unhex(content)))),
    envelope: hex(await sealEnvelope(place, secrets, unhex(seed), unhex(nonce), unhex(content))),
  };
}

async function buckets({ author, place, byte, sizes }, secrets, people) {
  const seed = unhex(people[author].seed);
  return {
    sizes: await each(sizes, async ({ content_bytes, nonce }) => {
      const content = new Uint8Array(content_bytes).fill(byte);
      const envelope = await sealEnvelope(place, secrets, seed, unhex(nonce), content);
      return { bucket_bytes: envelope.length - 1 - 12 - GCM_TAG, sha256: hex(await sha256(envelope)) };
    }),
  };
}

// ── invites ─────────────────────────────────────────────────────────────────────────────────────────────────────────

function parsed(link) {
  const [, fragment] = link.split("#");
  if (!fragment || !/^[A-Za-z0-9_-]*$/.test(fragment) || fragment.length % 4 === 1) return null;
  const raw = Uint8Array.from(atob(fragment.replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0));
  return raw[0] === 1 && raw.length === 1 + 16 + 16 + 32 + 16 + 32 + 8 + 32 ? raw : null;
}

async function invite(vector, people) {
  const { group_id, invite_id, secret, epoch, inviter_id, inviter_signing_key, seq, hash, nonce, join } = vector;
  const ids = unhex(group_id + invite_id);
  const fragment = concat([1], ids, unhex(secret + inviter_id + inviter_signing_key), u64(seq), unhex(hash));
  const seed = await hkdf(unhex(secret), ascii("orbital.v1.invite.sign\0"));
  const sealKey = await hkdf(unhex(secret), ascii("orbital.v1.invite.seal\0"));
  const aad = concat(ascii("orbital.v1.invite.seal\0"), ids, u32(epoch));
  const { user_id, signing_key, rsa_thumbprint } = people[join.joiner];
  const preimage = concat(ascii("orbital.v1.join\0"), ids, unhex(user_id + signing_key + rsa_thumbprint));
  return {
    text: `orbital:${vector.invite_code}#${base64url(fragment)}`,
    sign_seed: hex(seed),
    invite_key: hex(await publicKey(seed)),
    seal_key: hex(sealKey),
    aad: hex(aad),
    group_key: hex(await openKey(sealKey, aad, unhex(vector.sealed_group_key))),
    sealed_group_key: hex(await seal(sealKey, unhex(nonce), aad, unhex(vector.group_key))),
    refused: await each(vector.refused, async (wrong) => ({
      outcome: await outcomeOf(() => openKey(sealKey, aad, unhex(wrong.sealed_group_key))),
    })),
    join: { preimage: hex(preimage), invite_signature: hex(await sign(seed, preimage)) },
    no_links: vector.no_links.filter((link) => parsed(link) === null),
    is_link: parsed(vector.text) !== null,
  };
}

// ── passphrases and backups ─────────────────────────────────────────────────────────────────────────────────────────

async function passphrase({ username, passphrase }) {
  const salt = await sha256(concat(ascii("orbital.v1.kdf\0"), ascii(username)));
  const words = new TextEncoder().encode(passphrase.normalize("NFKC"));
  const key = await subtle.importKey("raw", words, "PBKDF2", false, ["deriveBits"]);
  const root = await subtle.deriveBits({ name: "PBKDF2", hash: "SHA-256", salt, iterations: 600000 }, key, 256);
  return {
    salt: hex(salt),
    password: base64url(await hkdf(root, ascii("orbital.v1.login\0"))),
    backup_key: hex(await hkdf(root, ascii("orbital.v1.backup\0"))),
  };
}

async function backup({ user_id, generation, key, nonce, content, backup, refused }) {
  const aad = concat(ascii("orbital.v1.backup\0"), unhex(user_id), u64(generation));
  async function openBackup(sealed) {
    checkVersion(sealed, 1 + 8 + 12 + GCM_TAG);
    if (!equal(sealed.slice(1, 9), u64(generation))) refuse("malformed");
    return decrypt(unhex(key), sealed.slice(9, 21), aad, sealed.slice(21), "wrong_passphrase");
  }
  const opened = await openBackup(unhex(backup));
  const resealed = await seal(unhex(key), unhex(nonce), aad, unhex(content));
  return {
    aad: hex(aad),
    content: hex(opened),
    says: unpack(opened),
    backup: hex(concat([1], u64(generation), resealed.slice(1))),
    refused: await each(refused, async (wrong) => ({ outcome: await outcomeOf(() => openBackup(unhex(wrong.backup))) })),
  };
}

// ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────

const bits = (value) => (value === 0 ? 0 : value.toString(2).length);

function padded(size) {
  const exponent = bits(size) - 1;
  const step = 2 ** Math.max(0, exponent - bits(Math.max(0, exponent)));
  return Math.ceil(size / step) * step;
}

const segmentsOf = (size) => Math.max(1, Math.ceil(padded(size) / PLAIN_BYTES));
const storedBytes = (size) => padded(size) + GCM_TAG * segmentsOf(size);

async function files({ group_id, media_id, key, encryption_iv, byte, sizes, padme, refused }) {
  const aad = concat(ascii("orbital.v1.segment\0"), unhex(group_id + media_id));
  const nonceOf = (index, last) => concat(unhex(encryption_iv).slice(0, 7), u32(index), [last ? 1 : 0]);
  async function file({ size_bytes }) {
    const whole = filled(new Uint8Array(size_bytes).fill(byte), padded(size_bytes));
    const [segments, digests] = [[], []];
    for (let index = 0; index < segmentsOf(size_bytes); index++) {
      const nonce = nonceOf(index, index === segmentsOf(size_bytes) - 1);
      const share = whole.slice(index * PLAIN_BYTES, (index + 1) * PLAIN_BYTES);
      const stored = await encrypt(unhex(key), nonce, aad, share);
      digests.push(await sha256(stored));
      segments.push({ nonce: hex(nonce), stored_bytes: stored.length, sha256: hex(digests.at(-1)) });
    }
    return {
      padded_bytes: padded(size_bytes),
      stored_bytes: storedBytes(size_bytes),
      root: hex(await sha256(concat(...digests))),
      segments,
    };
  }
  async function openSegment({ size_bytes, index, last, segment }) {
    const share = await decrypt(unhex(key), nonceOf(index, last), aad, unhex(segment));
    if (share.slice(Math.max(0, size_bytes - index * PLAIN_BYTES)).some((one) => one !== 0)) refuse("bad_seal");
  }
  return {
    aad: hex(aad),
    sizes: await each(sizes, file),
    padme: padme.map(({ size_bytes }) => ({
      padded_bytes: padded(size_bytes),
      stored_bytes: storedBytes(size_bytes),
    })),
    refused: await each(refused, async (wrong) => ({ outcome: await outcomeOf(() => openSegment(wrong)) })),
  };
}

// ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────

async function each(values, work) {
  const found = [];
  for (const value of values) found.push(await work(value));
  return found;
}

async function recompute(vectors) {
  const people = Object.fromEntries(vectors.people.map((one) => [one.name, one]));
  const secrets = Object.fromEntries(vectors.group_keys.map(({ epoch, secret }) => [epoch, unhex(secret)]));
  return {
    people: await each(vectors.people, person),
    thumbprints: await each(vectors.thumbprints, async (one) => ({ thumbprint: hex(await thumbprint(one.public_key)) })),
    group_keys: await each(vectors.group_keys, groupKey),
    previous: await previous(vectors.previous),
    wraps: await wraps(vectors.wraps, people),
    envelopes: await each(vectors.envelopes, (one) => envelope(one, secrets, people)),
    buckets: await buckets(vectors.buckets, secrets, people),
    refused_envelopes: await each(vectors.refused_envelopes, async ({ place, signing_key, envelope }) => ({
      outcome: await outcomeOf(() => openEnvelope(place, secrets, unhex(signing_key), unhex(envelope))),
    })),
    invite: await invite(vectors.invite, people),
    passphrases: await each(vectors.passphrases, passphrase),
    backup: await backup(vectors.backup),
    files: await files(vectors.files),
  };
}
