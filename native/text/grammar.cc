#include "text/grammar.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "base/error.h"
#include "text/token_trie.h"
#include "text/utf8.h"

namespace chatglm {

namespace {

// More than grammars of people and schemas need, and less than what exhausts memory or the stack.
constexpr size_t kMostBytes = size_t{16} << 20;
constexpr size_t kMostNodes = 200'000;  // 18 MB, and as much again for their edges
constexpr int32_t kMostRepetitions = 100'000;
constexpr int kMostLevels = 256;
constexpr uint32_t kLastCodePoint = 0x10FFFF;

using Range = std::pair<uint32_t, uint32_t>;  // code points, both ends included

struct Expression {
  enum class Kind { literal, range, rule, sequence, choice, repeat };
  Kind kind = Kind::sequence;
  std::string literal;        // bytes
  std::vector<Range> ranges;  // sorted, without overlaps
  int32_t rule = 0;
  std::vector<Expression> parts;  // of a sequence, a choice; the one of a repetition
  int32_t least = 0;
  int32_t most = -1;  // -1: any number
};

struct Rule {
  std::string name;
  std::optional<Expression> body;
  size_t mentioned = 0;  // where the rule is first named
};

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {
    if (text.size() > kMostBytes) throw Error("ERR_INVALID_ARGUMENT", "the grammar has more than 16 MiB");
    space(true);
    while (position_ < text_.size()) rule();
    for (const Rule& rule : rules_) {
      if (!rule.body) fail("the rule " + rule.name + " is not defined", rule.mentioned);
    }
    const auto root = numbers_.find("root");
    if (root == numbers_.end()) fail("there is no rule root", 0);
    root_ = root->second;
  }

  std::vector<Rule> rules_;
  std::vector<uint32_t> tokens_;
  int32_t root_ = 0;

 private:
  [[noreturn]] void fail(const std::string& problem, size_t at) const {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < std::min(at, text_.size()); ++i) {
      const auto byte = static_cast<uint8_t>(text_[i]);
      if (byte == '\n') {
        ++line;
        column = 1;
      } else if ((byte & 0xC0) != 0x80) {
        ++column;
      }
    }
    throw Error("ERR_INVALID_ARGUMENT",
                "grammar, line " + std::to_string(line) + ", column " + std::to_string(column) + ": " + problem);
  }

  char peek(size_t ahead = 0) const { return position_ + ahead < text_.size() ? text_[position_ + ahead] : '\0'; }
  bool at_end() const { return position_ >= text_.size(); }
  bool accept(char c) {
    if (at_end() || peek() != c) return false;
    ++position_;
    return true;
  }

  void space(bool lines) {
    while (!at_end()) {
      const char c = peek();
      if (c == '#') {
        while (!at_end() && peek() != '\n') ++position_;
      } else if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
        ++position_;
      } else {
        return;
      }
    }
  }

  static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

  std::string_view name() {
    const size_t begin = position_;
    if (is_letter(peek())) {
      while (is_letter(peek()) || is_digit(peek()) || peek() == '-') ++position_;
    }
    return text_.substr(begin, position_ - begin);
  }

  int32_t rule_number(std::string_view rule, size_t at) {
    const auto [found, is_new] = numbers_.try_emplace(std::string(rule), static_cast<int32_t>(rules_.size()));
    if (is_new) rules_.push_back({std::string(rule), std::nullopt, at});
    return found->second;
  }

  // Whether a new rule begins here. A line break alone does not end a rule.
  bool rule_begins() {
    const size_t begin = position_;
    const bool begins = !name().empty() && (space(false), text_.substr(position_, 3) == "::=");
    position_ = begin;
    return begins;
  }

  void rule() {
    const size_t begin = position_;
    const std::string_view called = name();
    if (called.empty()) fail("a rule begins with its name", begin);
    const int32_t number = rule_number(called, begin);
    space(false);
    if (text_.substr(position_, 3) != "::=") fail("::= is missing behind the name of the rule", position_);
    position_ += 3;
    if (rules_[static_cast<size_t>(number)].body) fail("a rule of this name is there already", begin);
    Expression body = choice(0);
    if (!at_end() && !rule_begins()) fail("this belongs to no rule", position_);
    rules_[static_cast<size_t>(number)].body = std::move(body);
  }

  Expression choice(int level) {
    if (level > kMostLevels) fail("groups are nested too deep", position_);
    Expression result;
    result.kind = Expression::Kind::choice;
    do {
      result.parts.push_back(sequence(level));
    } while (accept('|'));
    if (result.parts.size() > 1) return result;
    Expression only = std::move(result.parts[0]);
    return only;
  }

  Expression sequence(int level) {
    Expression result;
    for (;;) {
      space(true);
      if (at_end() || peek() == '|' || peek() == ')' || rule_begins()) break;
      result.parts.push_back(repeated(level));
    }
    return result;
  }

  Expression repeated(int level) {
    Expression part = primary(level);
    for (;;) {
      int32_t least = 0, most = -1;
      space(false);
      const size_t begin = position_;
      if (accept('*')) {
      } else if (accept('+')) {
        least = 1;
      } else if (accept('?')) {
        most = 1;
      } else if (accept('{')) {
        space(false);
        least = is_digit(peek()) ? number() : 0;
        space(false);
        most = least;
        if (accept(',')) {
          space(false);
          most = is_digit(peek()) ? number() : -1;
          space(false);
        }
        if (!accept('}')) fail("} is missing", position_);
        if (most >= 0 && most < least) fail("the repetition's end is below its beginning", begin);
      } else {
        return part;
      }
      Expression outer;
      outer.kind = Expression::Kind::repeat;
      outer.least = least;
      outer.most = most;
      outer.parts.push_back(std::move(part));
      part = std::move(outer);
      if (++level > kMostLevels) fail("repetitions are nested too deep", begin);
    }
  }

  int32_t number() {
    const size_t begin = position_;
    int64_t value = 0;
    for (; is_digit(peek()); ++position_) {
      value = value * 10 + (peek() - '0');
      if (value > kMostRepetitions) fail("more than " + std::to_string(kMostRepetitions) + " repetitions", begin);
    }
    return static_cast<int32_t>(value);
  }

  Expression primary(int level) {
    Expression result;
    const size_t begin = position_;
    if (accept('(')) {
      result = choice(level + 1);
      if (!accept(')')) fail(") is missing", position_);
      return result;
    }
    if (accept('"')) {
      result.kind = Expression::Kind::literal;
      while (!accept('"')) {
        if (at_end() || peek() == '\n') fail("the literal has no end", begin);
        if (peek() == '\\') {
          escape(&result.literal);
        } else {
          result.literal += peek();
          ++position_;
        }
      }
      return result;
    }
    if (accept('[')) {
      result.kind = Expression::Kind::range;
      result.ranges = character_class(begin);
      return result;
    }
    if (accept('.')) {
      result.kind = Expression::Kind::range;
      result.ranges = without_surrogates({{0, kLastCodePoint}});
      return result;
    }
    if (peek() == '<' && peek(1) == '[') {
      position_ += 2;
      int64_t id = 0;
      if (!is_digit(peek())) fail("<[ is followed by the id of a token", position_);
      for (; is_digit(peek()); ++position_) {
        id = id * 10 + (peek() - '0');
        if (id > std::numeric_limits<int32_t>::max()) fail("no token has such an id", begin);
      }
      if (!accept(']') || !accept('>')) fail("]> is missing", position_);
      result.kind = Expression::Kind::literal;
      result.literal = TokenTrie::special_text(static_cast<uint32_t>(id));
      tokens_.push_back(static_cast<uint32_t>(id));
      return result;
    }
    const std::string_view called = name();
    if (called.empty()) fail("this is no part of a rule", position_);
    result.kind = Expression::Kind::rule;
    result.rule = rule_number(called, begin);
    return result;
  }

  // The value of an escape. `bytes`: where a literal puts it; of \x the byte itself.
  uint32_t escape(std::string* bytes) {
    const size_t begin = position_++;
    const char kind = peek();
    ++position_;
    const auto hexadecimal = [&](int digits) {
      uint32_t value = 0;
      for (int i = 0; i < digits; ++i, ++position_) {
        const char c = peek();
        const int digit = is_digit(c)            ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) fail("the escape has " + std::to_string(digits) + " hexadecimal digits", begin);
        value = value * 16 + static_cast<uint32_t>(digit);
      }
      return value;
    };
    uint32_t value = 0;
    switch (kind) {
      case 'n': value = '\n'; break;
      case 'r': value = '\r'; break;
      case 't': value = '\t'; break;
      case 'x':
        value = hexadecimal(2);
        if (bytes) {
          *bytes += static_cast<char>(value);
          return value;
        }
        break;
      case 'u': value = hexadecimal(4); break;
      case 'U': value = hexadecimal(8); break;
      case '"':
      case '\\':
      case '[':
      case ']':
      case '-':
      case '^': value = static_cast<uint8_t>(kind); break;
      default: fail("there is no such escape", begin);
    }
    if (value > kLastCodePoint || (value >= 0xD800 && value <= 0xDFFF)) fail("there is no such code point", begin);
    if (bytes) for_utf8_bytes(value, [&](uint8_t byte) { *bytes += static_cast<char>(byte); });
    return value;
  }

  uint32_t class_member(size_t begin) {
    if (at_end() || peek() == '\n') fail("the class has no end", begin);
    if (peek() == '\\') return escape(nullptr);
    const Utf8Character character = first_character(text_.substr(position_));
    if (character.kind != Utf8::valid) fail("the grammar is no UTF-8", position_);
    position_ += character.length;
    return character.code;
  }

  std::vector<Range> character_class(size_t begin) {
    const bool negated = accept('^');
    std::vector<Range> ranges;
    while (!accept(']')) {
      const uint32_t first = class_member(begin);
      uint32_t last = first;
      if (peek() == '-' && peek(1) != ']') {
        ++position_;
        last = class_member(begin);
        if (last < first) fail("the range's end is below its beginning", begin);
      }
      ranges.emplace_back(first, last);
    }
    std::sort(ranges.begin(), ranges.end());
    std::vector<Range> merged;
    for (const Range& range : ranges) {
      if (!merged.empty() && range.first <= merged.back().second + 1) {
        merged.back().second = std::max(merged.back().second, range.second);
      } else {
        merged.push_back(range);
      }
    }
    if (!negated) return without_surrogates(merged);
    std::vector<Range> complement;
    uint32_t next = 0;
    for (const Range& range : merged) {
      if (range.first > next) complement.emplace_back(next, range.first - 1);
      next = range.second + 1;
    }
    if (next <= kLastCodePoint) complement.emplace_back(next, kLastCodePoint);
    return without_surrogates(complement);
  }

  static std::vector<Range> without_surrogates(const std::vector<Range>& ranges) {
    std::vector<Range> result;
    for (const auto& [first, last] : ranges) {
      if (first < 0xD800) result.emplace_back(first, std::min(last, 0xD7FFu));
      if (last > 0xDFFF) result.emplace_back(std::max(first, 0xE000u), last);
    }
    return result;
  }

  std::string_view text_;
  size_t position_ = 0;
  std::map<std::string, int32_t, std::less<>> numbers_;
};

}  // namespace

/// Makes automata of a parsed grammar.
class GrammarCompiler {
 public:
  GrammarCompiler(Grammar& grammar, const Grammar::Options& options) : grammar_(grammar), options_(options) {}

  void compile(Parser& parser) {
    const std::vector<Rule>& rules = parser.rules_;
    find_nullable(rules);
    for (const Rule& rule : rules) {
      const int32_t start = add_node();
      grammar_.starts_.push_back(start);
      node(emit(*rule.body, start)).end = true;
    }
    refuse_left_recursion(rules);
    find_tails();
    add_start(parser.root_);
    find_least();
    if (node(grammar_.start_).least == Grammar::kNever) {
      throw Error("ERR_INVALID_ARGUMENT", "grammar: root has no finite text: each way through it begins anew for ever");
    }
    grammar_.tokens_ = parser.tokens_;
  }

 private:
  Grammar::Node& node(int32_t index) { return grammar_.nodes_[static_cast<size_t>(index)]; }

  int32_t add_node() {
    if (grammar_.nodes_.size() >= kMostNodes) {
      throw Error("ERR_INVALID_ARGUMENT",
                  "the grammar is too large: its repetitions make more than " + std::to_string(kMostNodes) + " states");
    }
    const auto index = static_cast<int32_t>(grammar_.nodes_.size());
    grammar_.nodes_.emplace_back().mask_class = index;
    return index;
  }

  bool is_nullable(const Expression& e) const {
    switch (e.kind) {
      case Expression::Kind::literal: return e.literal.empty();
      case Expression::Kind::range: return false;
      case Expression::Kind::rule: return nullable_[static_cast<size_t>(e.rule)];
      case Expression::Kind::sequence:
        return std::all_of(e.parts.begin(), e.parts.end(), [&](const Expression& part) { return is_nullable(part); });
      case Expression::Kind::choice:
        return std::any_of(e.parts.begin(), e.parts.end(), [&](const Expression& part) { return is_nullable(part); });
      case Expression::Kind::repeat: return e.least == 0 || is_nullable(e.parts[0]);
    }
    return false;
  }

  void find_nullable(const std::vector<Rule>& rules) {
    nullable_.assign(rules.size(), false);
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t i = 0; i < rules.size(); ++i) {
        if (nullable_[i] || !is_nullable(*rules[i].body)) continue;
        nullable_[i] = true;
        changed = true;
      }
    }
  }

  /// Adds the automaton of an expression behind a node; returns where the expression ends. Nothing leads back to
  /// `from`.
  int32_t emit(const Expression& e, int32_t from) {
    switch (e.kind) {
      case Expression::Kind::literal:
        for (const char c : e.literal) {
          const int32_t to = add_node();
          node(from).edges.push_back({static_cast<uint8_t>(c), static_cast<uint8_t>(c), to});
          from = to;
        }
        return from;
      case Expression::Kind::range: return emit_ranges(e.ranges, from);
      case Expression::Kind::rule: {
        const int32_t to = add_node();
        node(from).calls.push_back({e.rule, to});
        return to;
      }
      case Expression::Kind::sequence:
        for (const Expression& part : e.parts) from = emit(part, from);
        return from;
      case Expression::Kind::choice: {
        const int32_t to = add_node();
        for (const Expression& part : e.parts) {
          const int32_t end = emit(part, from);
          node(end).empty.push_back(to);
        }
        return to;
      }
      case Expression::Kind::repeat: return emit_repeat(e, from);
    }
    return from;
  }

  int32_t emit_repeat(const Expression& e, int32_t from) {
    const Expression& part = e.parts[0];
    from = emit_copies(part, e.least, from, [](int32_t) {});
    if (e.most < 0) {
      const int32_t loop = add_node();
      node(from).empty.push_back(loop);
      const int32_t end = emit(part, loop);
      node(end).empty.push_back(loop);
      // What follows must not be entered from within the loop's own nodes but by this one.
      const int32_t to = add_node();
      node(loop).empty.push_back(to);
      return to;
    }
    if (e.most == e.least) return from;
    const int32_t to = add_node();
    from = emit_copies(part, e.most - e.least, from, [&](int32_t begin) { node(begin).empty.push_back(to); });
    node(from).empty.push_back(to);
    return to;
  }

  /// Copies in a row. All copies that have more of them behind than a token reaches are of the first copy's class.
  template <typename AtBegin>
  int32_t emit_copies(const Expression& part, int32_t count, int32_t from, AtBegin at_begin) {
    const bool shares = !is_nullable(part);
    int32_t first = 0, size = 0;
    for (int32_t i = 0; i < count; ++i) {
      at_begin(from);
      const int32_t begin = grammar_.node_count();
      from = emit(part, from);
      if (i == 0) {
        first = begin;
        size = grammar_.node_count() - begin;
      } else if (shares && count - i - 1 >= options_.longest_token) {
        for (int32_t j = 0; j < size; ++j) node(begin + j).mask_class = node(first + j).mask_class;
      }
    }
    return from;
  }

  int32_t emit_ranges(const std::vector<Range>& ranges, int32_t from) {
    const int32_t to = add_node();
    std::map<std::vector<std::pair<uint8_t, uint8_t>>, int32_t> tails;
    for (const auto& [first, last] : ranges) {
      utf8_ranges(first, last, [&](const std::vector<std::pair<uint8_t, uint8_t>>& bytes) {
        // Sequences with the same last bytes share their nodes.
        int32_t target = to;
        for (size_t i = bytes.size() - 1; i > 0; --i) {
          const std::vector<std::pair<uint8_t, uint8_t>> tail(bytes.begin() + static_cast<int64_t>(i), bytes.end());
          const auto [found, is_new] = tails.try_emplace(tail, 0);
          if (is_new) {
            found->second = add_node();
            node(found->second).edges.push_back({bytes[i].first, bytes[i].second, target});
          }
          target = found->second;
        }
        node(from).edges.push_back({bytes[0].first, bytes[0].second, target});
      });
    }
    return to;
  }

  /// Calls `use` with sequences of byte ranges that together are the UTF-8 of all code points from first to last.
  template <typename Use>
  static void utf8_ranges(uint32_t first, uint32_t last, const Use& use) {
    constexpr uint32_t kLimits[] = {0x7F, 0x7FF, 0xFFFF, kLastCodePoint};
    for (const uint32_t limit : kLimits) {
      if (first > last) return;
      if (first > limit) continue;
      split(first, std::min(last, limit), use);
      first = limit + 1;
    }
  }

  /// The same of code points whose UTF-8 has the same number of bytes.
  template <typename Use>
  static void split(uint32_t first, uint32_t last, const Use& use) {
    const int tail = first <= 0x7F ? 0 : first <= 0x7FF ? 1 : first <= 0xFFFF ? 2 : 3;
    for (int i = 1; i <= tail; ++i) {
      const uint32_t mask = (1u << (6 * i)) - 1;
      if ((first & ~mask) == (last & ~mask)) continue;
      // Cut where the last i bytes do not run through all of their values.
      if ((first & mask) != 0) {
        split(first, first | mask, use);
        split((first | mask) + 1, last, use);
        return;
      }
      if ((last & mask) != mask) {
        split(first, (last & ~mask) - 1, use);
        split(last & ~mask, last, use);
        return;
      }
    }
    std::string low, high;
    for_utf8_bytes(first, [&](uint8_t byte) { low += static_cast<char>(byte); });
    for_utf8_bytes(last, [&](uint8_t byte) { high += static_cast<char>(byte); });
    std::vector<std::pair<uint8_t, uint8_t>> bytes;
    for (size_t i = 0; i < low.size(); ++i) {
      bytes.emplace_back(static_cast<uint8_t>(low[i]), static_cast<uint8_t>(high[i]));
    }
    use(bytes);
  }

  /// A rule that calls itself before a byte was read would do so for ever.
  void refuse_left_recursion(const std::vector<Rule>& rules) {
    std::vector<std::vector<int32_t>> first_calls(rules.size());
    std::vector<int32_t> seen(grammar_.nodes_.size(), -1);
    for (size_t i = 0; i < rules.size(); ++i) {
      std::vector<int32_t> open{grammar_.starts_[i]};
      const auto visit = [&](int32_t index) {
        if (std::exchange(seen[static_cast<size_t>(index)], static_cast<int32_t>(i)) != static_cast<int32_t>(i)) {
          open.push_back(index);
        }
      };
      while (!open.empty()) {
        const Grammar::Node& at = node(open.back());
        open.pop_back();
        for (const int32_t next : at.empty) visit(next);
        for (const Grammar::Call& call : at.calls) {
          first_calls[i].push_back(call.rule);
          if (nullable_[static_cast<size_t>(call.rule)]) visit(call.target);
        }
      }
    }
    // Depth first, with a stack of its own: there may be very many rules.
    enum class Mark { fresh, open, done };
    std::vector<Mark> marks(rules.size(), Mark::fresh);
    for (size_t root = 0; root < rules.size(); ++root) {
      if (marks[root] != Mark::fresh) continue;
      std::vector<std::pair<size_t, size_t>> path{{root, 0}};
      marks[root] = Mark::open;
      while (!path.empty()) {
        auto& [rule, next] = path.back();
        if (next == first_calls[rule].size()) {
          marks[rule] = Mark::done;
          path.pop_back();
          continue;
        }
        const auto called = static_cast<size_t>(first_calls[rule][next++]);
        if (marks[called] == Mark::open) {
          throw Error("ERR_INVALID_ARGUMENT", "grammar: the rule " + rules[called].name +
                                                  " calls itself before anything is read (left recursion)");
        }
        if (marks[called] == Mark::fresh) {
          marks[called] = Mark::open;
          path.emplace_back(called, 0);
        }
      }
    }
  }

  bool may_begin_with(int32_t rule, uint8_t byte) {
    std::vector<bool> seen(grammar_.nodes_.size(), false);
    std::vector<int32_t> open{grammar_.start_of(rule)};
    while (!open.empty()) {
      const int32_t index = open.back();
      open.pop_back();
      if (seen[static_cast<size_t>(index)]) continue;
      seen[static_cast<size_t>(index)] = true;
      const Grammar::Node& at = node(index);
      for (const Grammar::Edge& edge : at.edges) {
        if (edge.first <= byte && byte <= edge.last) return true;
      }
      open.insert(open.end(), at.empty.begin(), at.empty.end());
      for (const Grammar::Call& call : at.calls) {
        open.push_back(grammar_.start_of(call.rule));
        if (nullable_[static_cast<size_t>(call.rule)]) open.push_back(call.target);
      }
    }
    return false;
  }

  void add_start(int32_t root) {
    grammar_.start_ = add_node();
    Expression prefix;
    prefix.kind = Expression::Kind::literal;
    prefix.literal = options_.prefix;
    int32_t at = emit(prefix, grammar_.start_);
    if (options_.dummy_space) {
      const int32_t behind = add_node();
      node(at).edges.push_back({' ', ' ', behind});
      if (!may_begin_with(root, ' ')) node(at).empty.push_back(behind);
      at = behind;
    }
    const int32_t end = add_node();
    node(at).calls.push_back({root, end});
    node(end).end = true;
  }

  /// The nodes behind which nothing of the rule comes.
  void find_tails() {
    for (int32_t i = 0; i < grammar_.node_count(); ++i) {
      int32_t at = i;
      const auto is_link = [&](const Grammar::Node& n) {
        return n.edges.empty() && n.calls.empty() && !n.end && n.empty.size() == 1;
      };
      for (int steps = 0; steps < kMostLevels && is_link(node(at)); ++steps) at = node(at).empty[0];
      const Grammar::Node& last = node(at);
      node(i).is_tail = last.end && last.edges.empty() && last.calls.empty() && last.empty.empty();
    }
  }

  /// The shortest texts, from the ends backwards: a node's figure changes a few times at most, since most nodes lead to
  /// nodes of higher numbers.
  void find_least() {
    const auto sum = [](uint32_t a, uint32_t b) {
      return a == Grammar::kNever || b == Grammar::kNever || a > Grammar::kNever - 1 - b ? Grammar::kNever : a + b;
    };
    for (Grammar::Node& each : grammar_.nodes_) each.least = each.end ? 0 : Grammar::kNever;
    for (bool changed = true; changed;) {
      changed = false;
      for (int32_t i = grammar_.node_count() - 1; i >= 0; --i) {
        Grammar::Node& at = node(i);
        uint32_t least = at.least;
        for (const Grammar::Edge& edge : at.edges) least = std::min(least, sum(1, node(edge.target).least));
        for (const int32_t next : at.empty) least = std::min(least, node(next).least);
        for (const Grammar::Call& call : at.calls) {
          least = std::min(least, sum(node(grammar_.start_of(call.rule)).least, node(call.target).least));
        }
        if (least < at.least) {
          at.least = least;
          changed = true;
        }
      }
    }
  }

  Grammar& grammar_;
  const Grammar::Options& options_;
  std::vector<bool> nullable_;  // (rules)
};

Grammar::Grammar(std::string_view text, const Options& options) {
  Parser parser(text);
  GrammarCompiler(*this, options).compile(parser);
}

}  // namespace chatglm
