-- ChaCha20-Poly1305 (RFC 8439) for the dissector, opening only.
--
-- It stands here once more because the Lua of Wireshark has no cipher in the versions that distributions carry (4.0). It
-- runs on keys that are in a file anyway, is slow and takes different times for different data: it protects nobody, and
-- nothing else should use it.

-- Lua 5.2 has bit32, later versions have the bit library that Wireshark brings. Its numbers may be negative: sums are
-- taken modulo 2^32.
local bits = bit32 or bit
local bxor, rotate = bits.bxor, bits.lrotate or bits.rol
local WORD = 4294967296

local function words(text, first, count)
    local list = {}
    for i = 1, count do
        local a, b, c, d = text:byte(first + 4 * i - 4, first + 4 * i - 1)
        list[i] = a + b * 256 + c * 65536 + d * 16777216
    end
    return list
end

local function quarter(x, a, b, c, d)
    x[a] = (x[a] + x[b]) % WORD
    x[d] = rotate(bxor(x[d], x[a]), 16)
    x[c] = (x[c] + x[d]) % WORD
    x[b] = rotate(bxor(x[b], x[c]), 12)
    x[a] = (x[a] + x[b]) % WORD
    x[d] = rotate(bxor(x[d], x[a]), 8)
    x[c] = (x[c] + x[d]) % WORD
    x[b] = rotate(bxor(x[b], x[c]), 7)
end

-- The 16 words of a block of key stream.
local function chacha_block(key, counter, nonce)
    local state = { 0x61707865, 0x3320646e, 0x79622d32, 0x6b206574 }
    for i = 1, 8 do
        state[4 + i] = key[i]
    end
    state[13], state[14], state[15], state[16] = counter, nonce[1], nonce[2], nonce[3]
    local x = {}
    for i = 1, 16 do
        x[i] = state[i]
    end
    for _ = 1, 10 do
        quarter(x, 1, 5, 9, 13)
        quarter(x, 2, 6, 10, 14)
        quarter(x, 3, 7, 11, 15)
        quarter(x, 4, 8, 12, 16)
        quarter(x, 1, 6, 11, 16)
        quarter(x, 2, 7, 12, 13)
        quarter(x, 3, 8, 9, 14)
        quarter(x, 4, 5, 10, 15)
    end
    for i = 1, 16 do
        x[i] = (x[i] + state[i]) % WORD
    end
    return x
end

local function word_bytes(word)
    local a = word % 256
    local b = math.floor(word / 256) % 256
    local c = math.floor(word / 65536) % 256
    return string.char(a, b, c, math.floor(word / 16777216))
end

local function chacha_xor(key, nonce, text)
    local out = {}
    for start = 1, #text, 64 do
        local stream = chacha_block(key, (start + 63) / 64, nonce)
        local piece = text:sub(start, start + 63)
        local input = words(piece .. string.rep("\0", 64 - #piece), 1, 16)
        for i = 1, 16 do
            out[#out + 1] = word_bytes(bxor(stream[i], input[i]) % WORD)
        end
    end
    return table.concat(out):sub(1, #text)
end

-- A number of little endian bytes as ten limbs of 13 bits: sums of products stay exact in a double.
local function limbs(bytes)
    local list, collected, width = {}, 0, 0
    for i = 1, #bytes do
        collected, width = collected + bytes:byte(i) * 2 ^ width, width + 8
        if width >= 13 then
            list[#list + 1] = collected % 8192
            collected, width = math.floor(collected / 8192), width - 13
        end
    end
    list[#list + 1] = collected
    while #list < 10 do
        list[#list + 1] = 0
    end
    return list
end

local function carry(h)
    local over = 0
    for i = 1, 10 do
        local sum = h[i] + over
        h[i], over = sum % 8192, math.floor(sum / 8192)
    end
    return over
end

local function multiply(h, r)
    local product = {}
    for i = 1, 10 do
        local sum = 0
        for j = 1, 10 do
            -- 2^130 is 5 modulo the prime.
            sum = sum + h[j] * (j <= i and r[i - j + 1] or 5 * r[i - j + 11])
        end
        product[i] = sum
    end
    local over = carry(product)
    product[1] = product[1] + 5 * over
    return product
end

local function poly1305(key, text)
    local clamped = {}
    for i = 1, 16 do
        local byte = key:byte(i)
        if i % 4 == 0 then
            byte = byte % 16
        elseif i % 4 == 1 and i > 1 then
            byte = byte - byte % 4
        end
        clamped[i] = string.char(byte)
    end
    local r = limbs(table.concat(clamped))
    local h = limbs("")
    for start = 1, #text, 16 do
        local block = limbs(text:sub(start, start + 15) .. "\1")
        for i = 1, 10 do
            h[i] = h[i] + block[i]
        end
        h = multiply(h, r)
    end
    -- Below the prime, which is 2^130 - 5.
    repeat
        local over = carry(h)
        h[1] = h[1] + 5 * over
    until over == 0 and h[1] < 8192
    local above = { h[1] + 5 }
    for i = 2, 10 do
        above[i] = h[i]
    end
    if carry(above) > 0 then
        h = above
    end
    -- Plus the second half of the key, modulo 2^128.
    local tag, collected, width, limb = {}, 0, 0, 1
    local over = 0
    for i = 1, 16 do
        while width < 8 do
            collected, width, limb = collected + (h[limb] or 0) * 2 ^ width, width + 13, limb + 1
        end
        local sum = collected % 256 + key:byte(16 + i) + over
        collected, width = math.floor(collected / 256), width - 8
        tag[i], over = string.char(sum % 256), math.floor(sum / 256)
    end
    return table.concat(tag)
end

local function padded(text)
    return text .. string.rep("\0", -#text % 16)
end

-- The payload, or nil when the tag does not verify. The header is 14 bytes, the nonce ConnectionId and Sequence.
local function open(key, header, sealed, tag)
    local nonce = words(header:sub(1, 4) .. header:sub(7, 14), 1, 3)
    local stream = chacha_block(key, 0, nonce)
    local mac_key = {}
    for i = 1, 8 do
        mac_key[i] = word_bytes(stream[i])
    end
    local lengths = word_bytes(#header) .. "\0\0\0\0" .. word_bytes(#sealed) .. "\0\0\0\0"
    if poly1305(table.concat(mac_key), padded(header) .. padded(sealed) .. lengths) ~= tag then
        return nil
    end
    return chacha_xor(key, nonce, sealed)
end

return { open = open, words = words }
