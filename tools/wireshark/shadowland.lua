-- Tales of Shadowland in Wireshark and tshark: decrypts sessions whose keys were logged, and names every message.
--
--   SHADOWLAND_KEYLOGFILE=keys.log shadowland serve
--   SHADOWLAND_KEYLOGFILE=keys.log tshark -X lua_script:tools/wireshark/shadowland.lua -r capture.pcap
--
-- The key log is found by the same variable, or by the preference shadowland.keylog_file. Datagrams are recognized on
-- UDP port 3565 and wherever a handshake is seen; elsewhere say -d udp.port==PORT,shadowland. To have it always, copy
-- this folder into the folder of personal Lua plugins (Help, About, Folders).
--
-- The bytes are those of docs/PROTOCOL.md. What it does not do: the payloads of Noise messages stay closed (their keys
-- are not logged), fragments are not put together, and low bits of positions are shown as they are, because what
-- they stand for depends on all that the client has seen.

local shadowland = Proto("shadowland", "Tales of Shadowland")
local cipher = dofile(__DIR__ .. __DIR_SEPARATOR__ .. "chacha20poly1305.lua")

-------------------------------------------------------------------------------------------------------------------
-- Names

local HANDSHAKES = { "Connect", "Cookie", "ConnectRequest", "ConnectionAccepted", "ConnectionDenied" }

local MESSAGES = {
    [0x01] = "Ping",
    [0x02] = "Pong",
    [0x03] = "Ack",
    [0x04] = "Disconnect",
    [0x05] = "Fragment",
    [0x06] = "ReliableHandshake",
    [0x07] = "CheckIntegrity",
    [0x08] = "IntegrityAnswer",
    [0x09] = "RekeyRequest",
    [0x0a] = "RekeyResponse",
    [0x0b] = "PathChallenge",
    [0x0c] = "PathResponse",
    [0x20] = "Input",
    [0x21] = "ResetPage",
    [0x40] = "Welcome",
    [0x41] = "Snapshot",
}

-- What is left to games is named by its number.
local function message_name(kind)
    local of_game = kind >= 0x30 and kind <= 0x3f or kind >= 0x60
    return MESSAGES[kind] or string.format(of_game and "Game (0x%02x)" or "unknown (0x%02x)", kind)
end

local FLAGS = {
    "Encrypted", "ChaCha20Poly1305", "Rekey", "Fragment", "Compressed", "Acknowledgment", "ReliableHandshake", "KeyPhase",
}

local CHANNELS = { [0] = "Unreliable", "ReliableOrdered", "ReliableUnordered" }

local DENIALS = { "full", "version", "shutting down", "login token", "too many from this address" }

local DISCONNECTS = {
    "leaving",
    "shutting down",
    "kicked",
    "idle timeout",
    "undeliverable",
    "replaced by a newer session of the same account",
    "full",
    "keys exhausted",
    "protocol violation",
    "integrity",
}

local ENTITIES = { [0] = "Player", "Npc", "Monster", "Projectile", "Environment", "Item", "Effect", "Vehicle" }

local STATES = {
    "dead", "in combat", "sprinting", "crouching", "airborne", "mounted", "casting", "stunned",
    "rooted", "silenced", "slowed", "hasted", "poisoned", "regenerating", "invulnerable", "shielded",
}

local BASELINE_AGES = {
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12288, 16384, 24576, 32768, 49152,
}

-------------------------------------------------------------------------------------------------------------------
-- Fields, for display filters

local f = {}
local function field(name, make, title, ...)
    f[name] = make("shadowland." .. name, title, ...)
end

field("connection_id", ProtoField.uint32, "ConnectionId", base.HEX)
field("channel", ProtoField.uint8, "Channel", base.DEC, CHANNELS)
field("flags", ProtoField.uint8, "Flags", base.HEX)
for bit, name in ipairs(FLAGS) do
    field("flags." .. name:lower(), ProtoField.bool, name, 8, nil, 2 ^ (bit - 1))
end
field("sequence", ProtoField.uint64, "Sequence")
field("tag", ProtoField.bytes, "Tag")
field("direction", ProtoField.string, "Direction")
field("key_number", ProtoField.uint32, "Number of the key")
field("sealed", ProtoField.bytes, "Sealed payload")

field("handshake", ProtoField.string, "Handshake message")
field("version", ProtoField.uint16, "Version")
field("ephemeral", ProtoField.bytes, "Client ephemeral key")
field("padding", ProtoField.bytes, "Padding")
field("echo", ProtoField.bytes, "Echo")
field("cookie", ProtoField.bytes, "Cookie")
field("noise", ProtoField.bytes, "Noise message")
field("deny_reason", ProtoField.uint8, "Reason", base.DEC, DENIALS)

field("ack", ProtoField.none, "Acknowledgements")
field("ack.largest", ProtoField.uint32, "Largest sequence, low 32 bits")
field("ack.mask", ProtoField.uint64, "Mask", base.HEX)
field("ack.delay", ProtoField.string, "Delay")

field("message", ProtoField.none, "Message")
field("message.name", ProtoField.string, "Type")
field("message.stream", ProtoField.uint8, "Stream", base.HEX)
field("message.id", ProtoField.uint64, "Id")
field("message.length", ProtoField.uint32, "Length")
field("message.unknown", ProtoField.bytes, "Body")

field("ping.id", ProtoField.uint32, "Ping id")
field("pong.held", ProtoField.uint32, "Held, in microseconds")
field("disconnect.reason", ProtoField.uint8, "Reason", base.DEC, DISCONNECTS)
field("handshake.answer", ProtoField.uint8, "Answer")
field("handshake.first_id", ProtoField.uint64, "First id")
field("handshake.window_messages", ProtoField.uint16, "Window in messages")
field("handshake.window_bytes", ProtoField.uint32, "Window in bytes")
field("handshake.message_bytes", ProtoField.uint32, "Largest message in bytes")
field("integrity.version", ProtoField.uint16, "Version")
field("integrity.index", ProtoField.uint8, "Index of the key")
field("integrity.nonce", ProtoField.bytes, "Nonce")
field("integrity.echo", ProtoField.bytes, "Echo")
field("integrity.proof", ProtoField.bytes, "Proof")
field("rekey.number", ProtoField.uint32, "Number of the new keys")
field("rekey.share", ProtoField.bytes, "Share")
field("path.token", ProtoField.bytes, "Token")
field("fragment.name", ProtoField.string, "Of a message of type")
field("fragment.index", ProtoField.uint32, "Index")
field("fragment.size", ProtoField.uint32, "Size of all pieces")
field("fragment.plain_size", ProtoField.uint32, "Size unpacked")
field("fragment.piece", ProtoField.bytes, "Piece")

field("input.newest", ProtoField.uint32, "Newest input")
field("input.count", ProtoField.uint8, "Count")
field("input", ProtoField.string, "Input")
field("page.cell", ProtoField.uint32, "Cell")
field("page.number", ProtoField.uint32, "Page number")
field("welcome.entity", ProtoField.uint32, "Own entity", base.HEX)
field("welcome.step", ProtoField.uint32, "Lattice step in micrometres")
field("welcome.tick_hz", ProtoField.uint8, "Ticks per second")
field("welcome.interest", ProtoField.uint32, "Interest distance in centimetres")

field("snapshot.contents", ProtoField.uint8, "Contents", base.HEX)
field("snapshot.tick", ProtoField.uint32, "Tick")
field("snapshot.low_tick", ProtoField.uint16, "Tick, low 16 bits")
field("snapshot.last_input", ProtoField.uint32, "Last input")
field("owner", ProtoField.string, "UpdateEntity (own entity)")
field("close", ProtoField.string, "Close")
field("block", ProtoField.string, "DeltaSync")
field("record", ProtoField.string, "Record")

local fields = {}
for _, one in pairs(f) do
    fields[#fields + 1] = one
end
shadowland.fields = fields

local malformed = ProtoExpert.new("shadowland.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
local closed = ProtoExpert.new(
    "shadowland.closed", "No logged key opens it", expert.group.DECRYPTION, expert.severity.NOTE
)
shadowland.experts = { malformed, closed }

shadowland.prefs.keylog_file =
    Pref.string("Key log file", os.getenv("SHADOWLAND_KEYLOGFILE") or "", "What SHADOWLAND_KEYLOGFILE has recorded")

-------------------------------------------------------------------------------------------------------------------
-- The key log: a line a key, `LABEL CONNECTION_ID NUMBER KEY`, ids and keys in hexadecimal digits

local DIRECTIONS = { CLIENT_TO_SERVER = "client to server", SERVER_TO_CLIENT = "server to client" }

-- By connection id: keys, the latest last. An id can come back with a later session.
local keys, known = {}, {}
local log = { path = "", read = 0 }
-- By frame number and place in it: what was opened, so that a second pass costs nothing.
local opened = {}

local function add_key(line)
    local label, id, number, hex = line:match("^(%u[%u_]+) (%x+) (%d+) (%x+)%s*$")
    if not (label and DIRECTIONS[label] and #id == 8 and #hex == 64) or known[line] then
        return
    end
    known[line] = true
    local binary = hex:gsub("%x%x", function(digits)
        return string.char(tonumber(digits, 16))
    end)
    id = tonumber(id, 16)
    keys[id] = keys[id] or {}
    table.insert(keys[id], {
        direction = DIRECTIONS[label],
        number = tonumber(number),
        words = cipher.words(binary, 1, 8),
    })
end

-- Reads what the log has got since the last time; it grows while a capture runs.
local function read_log()
    local path = shadowland.prefs.keylog_file
    if path ~= log.path then
        log = { path = path, read = 0 }
        keys, known = {}, {}
    end
    local file = path ~= "" and io.open(path, "rb")
    if not file then
        return
    end
    file:seek("set", log.read)
    for line in (file:read("*a") or ""):gmatch("[^\n]*\n") do
        log.read = log.read + #line
        add_key(line)
    end
    file:close()
end

-- Tries the keys of the connection and the phase, those that opened the last packets of this sender first.
local function try_keys(id, phase, sender, header, sealed, tag)
    local list = keys[id] or {}
    local hint = list[sender .. phase]
    local plain = hint and cipher.open(hint.words, header, sealed, tag)
    if plain then
        return plain, hint
    end
    for i = #list, 1, -1 do
        local key = list[i]
        if key ~= hint and key.number % 2 == phase then
            plain = cipher.open(key.words, header, sealed, tag)
            if plain then
                list[sender .. phase] = key
                return plain, key
            end
        end
    end
end

-------------------------------------------------------------------------------------------------------------------
-- Reading: whatever is not there, or not allowed, is an error that names it

local function fail(what)
    error({ malformed = what }, 0)
end

local Reader = {}
Reader.__index = Reader

local function reader(tvb, first, length)
    return setmetatable({ tvb = tvb, at = first, stop = first + length }, Reader)
end

function Reader:take(count)
    if self.at + count > self.stop then
        fail("it ends too early")
    end
    local range = self.tvb(self.at, count)
    self.at = self.at + count
    return range
end

function Reader:rest()
    return self.stop - self.at
end

function Reader:finish()
    if self:rest() > 0 then
        fail("more bytes than it has")
    end
end

-- The value and the range of a varint.
function Reader:varint()
    local first, value, scale = self.at, 0, 1
    for count = 1, 10 do
        local byte = self:take(1):uint()
        value, scale = value + byte % 128 * scale, scale * 128
        if byte < 128 then
            if byte == 0 and count > 1 then
                fail("a varint that is longer than need be")
            end
            return value, self.tvb(first, self.at - first)
        end
    end
    fail("a varint of more than ten bytes")
end

local function u64(value)
    return UInt64.new(value % 2 ^ 32, math.floor(value / 2 ^ 32))
end

-- Adds a fixed number of bytes as a field, in little endian.
function Reader:add(tree, name, count)
    local range = self:take(count)
    tree:add_le(f[name], range)
    return range
end

function Reader:add_varint(tree, name)
    local value, range = self:varint()
    tree:add(f[name], range, value)
    return value
end

-- Bits from the least significant end of the bytes of `tvb`, from byte `first` on.
local Bits = {}
Bits.__index = Bits

local function bit_reader(source)
    return setmetatable({ source = source, first = source.at, at = 0 }, Bits)
end

function Bits:take(count)
    local value, have = 0, 0
    while have < count do
        local byte = self.first + math.floor((self.at + have) / 8)
        if byte >= self.source.stop then
            fail("a block ends too early")
        end
        local shift = (self.at + have) % 8
        local width = math.min(8 - shift, count - have)
        local part = math.floor(self.source.tvb(byte, 1):uint() / 2 ^ shift) % 2 ^ width
        value, have = value + part * 2 ^ have, have + width
    end
    self.at = self.at + count
    return value
end

function Bits:flag()
    return self:take(1) == 1
end

function Bits:signed(count)
    local value = self:take(count)
    return value >= 2 ^ (count - 1) and value - 2 ^ count or value
end

-- The bytes that were touched since bit `from`.
function Bits:range(from)
    local first = self.first + math.floor(from / 8)
    return self.source.tvb(first, self.first + math.ceil(self.at / 8) - first)
end

-- Goes on after the whole byte; what is left of it must be zero.
function Bits:finish()
    if self:take(-self.at % 8) ~= 0 then
        fail("bits after the end of a block")
    end
    self.source.at = self.first + self.at / 8
end

-------------------------------------------------------------------------------------------------------------------
-- Blocks of a snapshot

local function state_names(state)
    local names = {}
    for bit, name in ipairs(STATES) do
        if math.floor(state / 2 ^ (bit - 1)) % 2 == 1 then
            names[#names + 1] = name
        end
    end
    return #names > 0 and table.concat(names, ", ") or "none"
end

local function slots(block)
    local list = {}
    local count = block:take(5)
    if count > 24 then
        fail("more than 24 slots")
    end
    for slot = 0, count - 1 do
        if block:flag() then
            list[#list + 1] = slot
        end
    end
    return list
end

-- Quadrant and offset of each axis; `last` keeps the quadrant for the next one.
local function full_position(block, last)
    if not block:flag() then
        for axis = 1, 3 do
            last[axis] = block:signed(16)
        end
    end
    local place = {}
    for axis = 1, 3 do
        place[axis] = string.format("%d", last[axis] * 65536 + block:signed(16))
    end
    return "at " .. table.concat(place, ", ")
end

local function rotation(block)
    if block:flag() then
        return string.format("yaw %d, pitch %d, roll %d", block:take(12), block:take(12), block:take(12))
    end
    return string.format("yaw %d", block:take(8) * 16)
end

local function velocity(block)
    if not block:flag() then
        return "at rest"
    end
    local x, y = block:signed(16), block:signed(16)
    return string.format("velocity %d, %d, %d", x, y, block:flag() and block:signed(16) or 0)
end

-- How many bits some fields take.
local FULL_WIDTHS = { animation = 16, state = 16, mana = true }

local function read_widths(block)
    local widths = { animation = block:take(5), state = block:take(5), mana = block:flag() }
    if widths.animation > 16 or widths.state > 16 then
        fail("a field of more than 16 bits")
    end
    return widths
end

local function vitals(block, widths)
    return string.format("health %d, mana %d", block:take(8), widths.mana and block:take(8) or 255)
end

local function animation(block, widths)
    return string.format("animation %d", block:take(widths.animation))
end

local function state(block, widths)
    return "state " .. state_names(block:take(widths.state))
end

local function create_entity(block, last, widths)
    local id, kind = block:take(32), block:take(4)
    local name = ENTITIES[kind] or fail("an unknown type of entity")
    local parts = { full_position(block, last), rotation(block), animation(block, widths), state(block, widths) }
    parts[#parts + 1] = velocity(block)
    parts[#parts + 1] = vitals(block, widths)
    return string.format("entity 0x%08x, %s, %s", id, name, table.concat(parts, "; "))
end

local function low_position(block, low, rich)
    local x, y = block:take(low), block:take(low)
    local z = rich and block:flag() and string.format(", Z %d", block:take(low)) or ""
    return string.format("low %d bits X %d, Y %d%s", low, x, y, z)
end

local function read_groups(block)
    local groups = {}
    for group = 1, 6 do
        groups[group] = block:flag()
    end
    return groups
end

-- `layout` is what the body says of all its updates.
local function update_entity(block, last, layout)
    local wide = layout.some_wide and block:flag()
    local groups = layout.groups or { true }
    if not layout.groups and block:flag() then
        groups[2] = true
        if block:flag() then
            groups = read_groups(block)
        end
    end
    local parts = {}
    if groups[1] then
        parts[1] = wide and full_position(block, last) or low_position(block, layout.low, layout.rich)
    end
    for group, read in ipairs({ rotation, animation, state, velocity, vitals }) do
        if groups[group + 1] then
            parts[#parts + 1] = read(block, layout.widths)
        end
    end
    return table.concat(parts, "; ")
end

local function remove_entity(block)
    local id, age = block:take(32), block:take(16)
    local text = string.format("entity 0x%08x, %d ticks ago", id, age)
    if block:flag() then
        text = text .. string.format(", to cell %d page %d", block:take(26), block:take(12))
    end
    return text
end

-- Adds one record and its bytes to the tree.
local function add_record(tree, block, title, read, ...)
    local from = block.at
    local text = read(block, ...)
    tree:add(f.record, block:range(from), title .. ": " .. text)
end

local function block_body(source, tree)
    local block = bit_reader(source)
    local last = { 0, 0, 0 }
    local layout = { rich = block:flag(), widths = FULL_WIDTHS }
    local has_updates, uniform = true, false
    if layout.rich then
        local has_tombstones, has_enters = block:flag(), block:flag()
        has_updates, layout.some_wide, uniform = block:flag(), block:flag(), block:flag()
        layout.widths = block:flag() and read_widths(block) or FULL_WIDTHS
        for _ = 1, has_tombstones and block:take(4) + 1 or 0 do
            add_record(tree, block, "RemoveEntity", remove_entity)
        end
        for _, slot in ipairs(has_enters and slots(block) or {}) do
            add_record(tree, block, "CreateEntity in slot " .. slot, create_entity, last, layout.widths)
        end
    end
    if has_updates then
        local changed = slots(block)
        layout.low = block:take(5)
        layout.groups = uniform and read_groups(block) or nil
        for _, slot in ipairs(changed) do
            local title = "UpdateEntityQuantized in slot " .. slot
            add_record(tree, block, title, update_entity, last, layout)
        end
    end
    block:finish()
end

local function signed_varint(source)
    local value = source:varint()
    return value % 2 == 0 and value / 2 or -(value + 1) / 2
end

-- One block of a page; `cell` is that of the block before. Returns its own.
local function delta_sync(source, tree, cell)
    local start = source.at
    local head = source:take(1):uint()
    local age, numbered, next_cell = head % 32, math.floor(head / 32) % 2 == 1, math.floor(head / 64) % 2 == 1
    if next_cell then
        cell = cell + 1
    else
        cell = cell + signed_varint(source)
    end
    local page = numbered and source:varint() or 0
    local baseline = age == 0 and "complete" or string.format("since %d ticks", BASELINE_AGES[age])
    local item = tree:add(f.block, source.tvb(start, source.at - start), "")
    item:set_text(string.format("DeltaSync: cell %d page %d, %s", cell, page, baseline))
    block_body(source, item)
    item:set_len(source.at - start)
    return cell
end

local function pose_frame(source)
    local bits = bit_reader(source)
    local frame = { floor = bits:signed(32), index = bits:take(5), generation = bits:take(4), height = bits:take(6) }
    frame.widths = read_widths(bits)
    bits:take(6)
    bits:finish()
    return frame
end

local function pose(bits, frame, row, column)
    local id = bits:take(frame.index) + bits:take(frame.generation) * 2 ^ 20
    local x, y = column * 256 + bits:take(8), row * 256 + bits:take(8)
    local z = frame.floor + (bits:flag() and bits:take(frame.height) or 0)
    local parts = { string.format("at %d, %d, %d", x, y, z), rotation(bits), animation(bits, frame.widths) }
    if bits:flag() then
        parts[#parts + 1] = state(bits, frame.widths)
        parts[#parts + 1] = vitals(bits, frame.widths)
    end
    return string.format("entity 0x%08x, %s", id, table.concat(parts, "; "))
end

-- One pose block; `context` is what those before it in the same message left.
local function poses(source, tree, context)
    local start = source.at
    local head = source:take(1):uint()
    if head >= 0x84 then
        fail("bits of a pose block's header")
    end
    if head % 2 == 1 then
        context.frame = pose_frame(source)
    end
    local frame = context.frame or fail("a pose block without a frame")
    context.row = context.row + (math.floor(head / 2) % 2 == 1 and 1 or signed_varint(source))
    context.column = context.column + signed_varint(source)
    local bodies = source:take(1):uint()
    local item = tree:add(f.block, source.tvb(start, source.at - start), "")
    item:set_text(string.format("Poses: row %d from column %d on", context.row, context.column))
    local column = context.column
    for body = 1, bodies do
        local bits = bit_reader(source)
        local skip = bits:take(4)
        if skip == 15 then
            skip = bits:take(24)
        end
        if body > 1 then
            column = column + skip
        end
        for _ = 0, bits:take(4) do
            add_record(item, bits, "Pose", pose, frame, context.row, column)
        end
        bits:finish()
    end
    item:set_len(source.at - start)
end

-- What the first byte of a snapshot says.
local function contents_of(byte)
    local function has(bit)
        return math.floor(byte / bit) % 2 == 1
    end
    local contents = {
        owner = has(0x01), moving = has(0x02), state = has(0x04), vitals = has(0x08),
        short = has(0x10), rising = has(0x20), closes = has(0x40), level = has(0x80),
    }
    local of_owner = contents.moving or contents.state or contents.vitals or contents.rising or contents.level
    if of_owner and not contents.owner or contents.level and not contents.short then
        fail("contents of a snapshot that do not go together")
    end
    return contents
end

local function update_entity_exact(source, tree, contents)
    local start, parts = source.at, {}
    for axis = 1, contents.level and 2 or 3 do
        local place = contents.short and string.format("..%d", source:take(2):le_uint()) or source:take(4):le_int()
        parts[axis] = string.format("%s%+d/256", place, source:take(1):le_int())
    end
    local text = "at " .. table.concat(parts, ", ") .. string.format("; yaw %d", source:take(2):le_uint())
    if contents.moving then
        text = text .. string.format("; velocity %d, %d", source:take(2):le_int(), source:take(2):le_int())
    end
    if contents.rising then
        text = text .. string.format("; velocity Z %d", source:take(2):le_int())
    end
    if contents.state then
        text = text .. "; state " .. state_names(source:take(2):le_uint())
    end
    if contents.vitals then
        text = text .. string.format("; health %d, mana %d", source:take(2):le_uint(), source:take(2):le_uint())
    end
    tree:add(f.owner, source.tvb(start, source.at - start), text)
end

-------------------------------------------------------------------------------------------------------------------
-- Messages: each takes the reader of its body and the tree of its message

local read = {}

read[0x01] = function(body, tree)
    body:add(tree, "ping.id", 4)
end

read[0x02] = function(body, tree)
    body:add(tree, "ping.id", 4)
    body:add(tree, "pong.held", 4)
end

read[0x04] = function(body, tree)
    body:add(tree, "disconnect.reason", 1)
end

read[0x05] = function(body, tree)
    local range = body:take(1)
    local kind, packed = range:uint() % 128, range:uint() >= 128
    local name = message_name(kind)
    tree:add(f["fragment.name"], range, name .. (packed and ", compressed" or ""))
    body:add_varint(tree, "fragment.index")
    body:add_varint(tree, "fragment.size")
    if packed then
        body:add_varint(tree, "fragment.plain_size")
    end
    body:add(tree, "fragment.piece", body:rest())
end

read[0x06] = function(body, tree)
    body:add(tree, "handshake.answer", 1)
    local first, range = body:varint()
    tree:add(f["handshake.first_id"], range, u64(first))
    body:add(tree, "handshake.window_messages", 2)
    body:add(tree, "handshake.window_bytes", 4)
    body:add(tree, "handshake.message_bytes", 4)
end

read[0x07] = function(body, tree)
    body:add(tree, "integrity.version", 2)
    body:add(tree, "integrity.index", 1)
    body:add(tree, "integrity.nonce", 16)
end

read[0x08] = function(body, tree)
    body:add(tree, "integrity.version", 2)
    body:add(tree, "integrity.echo", 8)
    body:add(tree, "integrity.proof", 16)
end

read[0x09] = function(body, tree)
    body:add(tree, "rekey.number", 4)
    body:add(tree, "rekey.share", 32)
end
read[0x0a] = read[0x09]

read[0x0b] = function(body, tree)
    body:add(tree, "path.token", 8)
end
read[0x0c] = read[0x0b]

read[0x20] = function(body, tree)
    local newest = body:add_varint(tree, "input.newest")
    local count = body:add(tree, "input.count", 1):uint()
    if count < 1 or count > 8 or count > newest then
        fail("so many inputs cannot be")
    end
    for number = newest - count + 1, newest do
        local range = body:take(5)
        local buttons = range(4, 1):uint()
        local held = {}
        for bit, name in ipairs({ "sprint", "crouch", "jump" }) do
            if math.floor(buttons / 2 ^ (bit - 1)) % 2 == 1 then
                held[#held + 1] = name
            end
        end
        local text = string.format(
            "%d: forward %d, right %d, yaw %d, %s", number, range(0, 1):le_int(), range(1, 1):le_int(),
            range(2, 2):le_uint(), #held > 0 and table.concat(held, ", ") or "no buttons"
        )
        tree:add(f.input, range, text)
    end
end

read[0x21] = function(body, tree)
    body:add_varint(tree, "page.cell")
    body:add_varint(tree, "page.number")
end

read[0x40] = function(body, tree)
    body:add(tree, "welcome.entity", 4)
    body:add(tree, "welcome.step", 4)
    body:add(tree, "welcome.tick_hz", 1)
    body:add(tree, "welcome.interest", 4)
end

read[0x41] = function(body, tree)
    local range = body:take(1)
    local contents = contents_of(range:uint())
    tree:add(f["snapshot.contents"], range)
    body:add(tree, contents.short and "snapshot.low_tick" or "snapshot.tick", contents.short and 2 or 4)
    body:add_varint(tree, "snapshot.last_input")
    if contents.owner then
        update_entity_exact(body, tree, contents)
    end
    local closes = contents.closes and body:varint() or 0
    if closes > 32 then
        fail("more than 32 closes")
    end
    for _ = 1, closes do
        local start = body.at
        local cell, age = body:varint(), body:varint()
        tree:add(f.close, body.tvb(start, body.at - start), string.format("cell %d, %d ticks ago", cell, age))
    end
    local cell, context = 0, { row = 0, column = 0 }
    while body:rest() > 0 do
        if body.tvb(body.at, 1):uint() >= 0x80 then
            poses(body, tree, context)
        else
            cell = delta_sync(body, tree, cell)
        end
    end
end

-------------------------------------------------------------------------------------------------------------------
-- Payload: acknowledgement block and messages

local function acknowledgements(payload, tree)
    local start = payload.at
    local head = payload:take(1):uint()
    if head < 0x80 then
        if head ~= 0 then
            fail("an acknowledgement block that says nothing")
        end
        return
    end
    local item = tree:add(f.ack, payload.tvb(start, 1))
    local delay = head % 64
    item:add(f["ack.delay"], payload.tvb(start, 1), string.format("%s%.1f ms", delay == 63 and "at least " or "", delay / 2))
    payload:add(item, "ack.largest", 4)
    if head % 128 >= 64 then
        payload:add(item, "ack.mask", 8)
    end
    item:set_len(payload.at - start)
end

-- One message; its name.
local function message(payload, tree)
    local start = payload.at
    local range = payload:take(1)
    local kind, reliable = range:uint() % 128, range:uint() >= 128
    local name = message_name(kind)
    local item = tree:add(f.message, range)
    item:set_text("Message: " .. name)
    item:add(f["message.name"], range, name)
    if reliable then
        payload:add(item, "message.stream", 1)
        local id, id_range = payload:varint()
        item:add(f["message.id"], id_range, u64(id))
    end
    local length = payload:add_varint(item, "message.length")
    if length > payload:rest() then
        fail(name .. " is longer than its packet")
    end
    item:set_len(payload.at + length - start)
    local body = reader(payload.tvb, payload.at, length)
    payload.at = payload.at + length
    if read[kind] then
        read[kind](body, item)
        body:finish()
    elseif length > 0 then
        item:add(f["message.unknown"], body:take(length))
    end
    return name
end

-- Dissects an opened payload; what it carries, in words.
local function payload_of(tvb, tree)
    local names = {}
    local ok, problem = pcall(function()
        local payload = reader(tvb, 0, tvb:len())
        acknowledgements(payload, tree)
        while payload:rest() > 0 do
            names[#names + 1] = message(payload, tree)
        end
    end)
    if not ok then
        local what = type(problem) == "table" and problem.malformed or "the dissector failed: " .. tostring(problem)
        tree:add_proto_expert_info(malformed, "Malformed: " .. what)
        names[#names + 1] = "malformed"
    end
    return #names > 0 and table.concat(names, ", ") or "acknowledgements"
end

-------------------------------------------------------------------------------------------------------------------
-- Datagrams

local HEADER_BYTES, TAG_BYTES = 14, 16

-- Adds the 14 bytes that every datagram starts with.
local function add_header(tvb, tree)
    local item = tree:add(shadowland, tvb(0, HEADER_BYTES), "Header")
    item:add_le(f.connection_id, tvb(0, 4))
    item:add(f.channel, tvb(4, 1))
    local flags = item:add(f.flags, tvb(5, 1))
    for _, name in ipairs(FLAGS) do
        flags:add(f["flags." .. name:lower()], tvb(5, 1))
    end
    item:add_le(f.sequence, tvb(6, 8))
end

-- The smallest and greatest length of each handshake datagram.
local LENGTHS = { { 1200, 1200 }, { 71, 71 }, { 162, 419 }, { 85, 85 }, { 24, 24 } }

-- The type of a handshake datagram, or nil.
local function handshake_type(tvb)
    if tvb:len() <= HEADER_BYTES or tvb(0, HEADER_BYTES):bytes():tohex() ~= string.rep("00", HEADER_BYTES) then
        return nil
    end
    local kind = tvb(HEADER_BYTES, 1):uint()
    local bounds = LENGTHS[kind]
    return bounds and tvb:len() >= bounds[1] and tvb:len() <= bounds[2] and kind or nil
end

local function handshake(tvb, kind, tree)
    local body = reader(tvb, HEADER_BYTES, tvb:len() - HEADER_BYTES)
    tree:add(f.handshake, body:take(1), HANDSHAKES[kind])
    if kind == 1 then
        body:add(tree, "version", 2)
        body:add(tree, "ephemeral", 32)
        body:add(tree, "padding", body:rest())
    elseif kind == 2 then
        body:add(tree, "echo", 8)
        body:add(tree, "cookie", 48)
    elseif kind == 3 then
        body:add(tree, "version", 2)
        body:add(tree, "cookie", 48)
        tree:add(f.ephemeral, tvb(body.at, 32))
        body:add(tree, "noise", body:rest())
    elseif kind == 4 then
        body:add(tree, "echo", 8)
        body:add(tree, "noise", body:rest())
    else
        body:add(tree, "echo", 8)
        body:add(tree, "deny_reason", 1)
    end
    return HANDSHAKES[kind]
end

-- Whether the clear part of a datagram is that of a sealed packet.
local function looks_sealed(tvb)
    if tvb:len() < HEADER_BYTES + TAG_BYTES + 1 or tvb:len() > 1200 or tvb(0, 4):uint() == 0 then
        return false
    end
    -- Encrypted and ChaCha20Poly1305 are always set, sequences end at 2^48.
    return tvb(4, 1):uint() <= 2 and tvb(5, 1):uint() % 4 == 3 and tvb(12, 2):uint() == 0
end

local function sealed_packet(tvb, pinfo, tree)
    local length = tvb:len()
    local raw = tvb:raw(0, length)
    local header, tag = raw:sub(1, HEADER_BYTES), raw:sub(length - TAG_BYTES + 1)
    local sealed = raw:sub(HEADER_BYTES + 1, length - TAG_BYTES)
    local place = pinfo.number .. ":" .. tag
    if not opened[place] then
        local id, phase = tvb(0, 4):le_uint(), tvb(5, 1):uint() >= 128 and 1 or 0
        local sender = tostring(pinfo.src) .. ":" .. pinfo.src_port .. ":"
        local plain, key = try_keys(id, phase, sender, header, sealed, tag)
        if not plain then
            read_log()
            plain, key = try_keys(id, phase, sender, header, sealed, tag)
        end
        opened[place] = plain and { plain = plain, key = key }
    end
    tree:add(f.tag, tvb(length - TAG_BYTES, TAG_BYTES))
    local found = opened[place]
    local middle = tvb(HEADER_BYTES, length - HEADER_BYTES - TAG_BYTES)
    if not found then
        tree:add(f.sealed, middle)
        tree:add_proto_expert_info(closed)
        return "sealed"
    end
    tree:add(f.direction, middle, found.key.direction):set_generated()
    tree:add(f.key_number, middle, found.key.number):set_generated()
    return payload_of(ByteArray.new(found.plain, true):tvb("Opened payload"), tree)
end

function shadowland.dissector(tvb, pinfo, tree)
    local kind = handshake_type(tvb)
    if not kind and not looks_sealed(tvb) then
        return 0
    end
    pinfo.cols.protocol = "Shadowland"
    local item = tree:add(shadowland, tvb())
    add_header(tvb, item)
    local what = kind and handshake(tvb, kind, item) or sealed_packet(tvb, pinfo, item)
    item:append_text(": " .. what)
    pinfo.cols.info = what
    return tvb:len()
end

function shadowland.init()
    opened = {}
    read_log()
end

DissectorTable.get("udp.port"):add(3565, shadowland)

-- On other ports: a handshake tells, and what comes after it between the same addresses.
shadowland:register_heuristic("udp", function(tvb, pinfo, tree)
    local kind = handshake_type(tvb)
    if not kind and not (looks_sealed(tvb) and keys[tvb(0, 4):le_uint()]) then
        return false
    end
    shadowland.dissector(tvb, pinfo, tree)
    if kind then
        pinfo.conversation = shadowland
    end
    return true
end)
