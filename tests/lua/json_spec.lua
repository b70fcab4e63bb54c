-- SPDX-License-Identifier: MIT
local json = require "fcvm.json"

describe("JSON", function()
    it("is decoded", function()
        assert.same({ a = { 1, 2.5, "x" }, b = true, c = false },
            json.decode [[ { "a" : [1, 2.5, "x"] , "b":true,"c":false } ]])
        assert.equal(json.null, json.decode "null")
        assert.equal("\u{20ac}\u{1f600}\n\"/", json.decode [["\u20ac\ud83d\ude00\n\"\/"]])
        assert.equal("integer", math.type(json.decode "12"))
        assert.equal("float", math.type(json.decode "12.0"))
        assert.equal(-1e3, json.decode "-1e3")
        assert.equal(0, json.decode "0")
    end)

    it("keeps empty arrays and objects apart", function()
        assert.equal("[]", json.encode(json.decode "[]"))
        assert.equal("{}", json.encode(json.decode "{}"))
        assert.equal("[null,1]", json.encode(json.decode "[null,1]"))
    end)

    it("is encoded, names sorted", function()
        assert.equal([[{"a":[1,2],"b":{"c":"x\ny\u0001"}}]], json.encode { b = { c = "x\ny\1" }, a = { 1, 2 } })
        assert.equal("1.0", json.encode(1.0))
        assert.equal("0.1", json.encode(0.1))
        assert.equal(0.1 + 0.2, json.decode(json.encode(0.1 + 0.2)))
        assert.equal("{\n  \"a\": [\n    1\n  ]\n}", json.encode({ a = { 1 } }, 2))
        assert.equal(math.mininteger, json.decode(json.encode(math.mininteger)))
    end)

    it("refuses what has none", function()
        for _, bad in ipairs { print, { 1, nil, 3 }, { 1, a = 2 }, { [1.5] = 1 }, "\xff", 0 / 0, math.huge } do
            assert.has_error(function() json.encode(bad) end)
        end
        local loop = {}
        loop.a = loop
        assert.has_error(function() json.encode(loop) end)
    end)

    it("refuses what is none", function()
        for _, bad in ipairs {
            "", "{", "[1,]", "{\"a\":1,}", "{a:1}", "[1 2]", "nul", "01", "1.", "+1", ".5", "1e", "\"", "\"\\x\"",
            "\"\n\"",
            "\"\\ud800\"", "\"\\udc00\"", "1 2", "{\"a\":1,\"a\":2}", ("["):rep(100), "NaN", "0x10", "-",
        } do
            local value, err = json.decode(bad)
            assert.is_nil(value, bad)
            assert.matches("^JSON: line %d+: ", err)
        end
    end)

    it("says in which line", function()
        local _, err = json.decode "{\n\"a\": 1,\n]"
        assert.matches("line 3", err)
    end)
end)
