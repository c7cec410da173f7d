// Classify images with `convoy serve` over a plain socket: C++17 and POSIX, no libraries.
//
// c++ -O2 -std=c++17 -o client client.cpp
// client 127.0.0.1 8000 photo.jpg …
// client 127.0.0.1 8000 --golden build/deploy/golden
//
// A token is read from CONVOY_SERVE_TOKEN. For HTTPS, put a proxy in front or use libcurl.

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

// A JSON value: number, text, list or object; true, false and null are numbers.
struct Json {
    double number = 0;
    std::string text;
    std::vector<Json> list;
    std::map<std::string, Json> object;
    const Json& operator[](const std::string& key) const { return object.at(key); }
};

class Reader {
  public:
    explicit Reader(const std::string& source) : at(source.data()), end(at + source.size()) {}

    Json value() {
        Json read;
        const char first = peek();
        if (first == '{') {
            items('}', [&] {
                const std::string key = string();
                take(':');
                read.object[key] = value();
            });
        } else if (first == '[') {
            items(']', [&] { read.list.push_back(value()); });
        } else if (first == '"') {
            read.text = string();
        } else if (first == 't' || first == 'f' || first == 'n') {
            read.number = first == 't';
            while (at < end && std::isalpha(static_cast<unsigned char>(*at))) ++at;
        } else {
            char* after = nullptr;
            read.number = std::strtod(at, &after);
            if (after == at) throw std::runtime_error("the answer is not JSON");
            at = after;
        }
        return read;
    }

  private:
    const char* at;
    const char* end;

    char peek() {
        while (at < end && std::isspace(static_cast<unsigned char>(*at))) ++at;
        if (at == end) throw std::runtime_error("the answer ends early");
        return *at;
    }

    void take(char expected) {
        if (peek() != expected) throw std::runtime_error(std::string("expected ") + expected);
        ++at;
    }

    template <class Item>
    void items(char last, Item item) {
        ++at;
        while (peek() != last) {
            item();
            if (peek() == ',') ++at;
        }
        ++at;
    }

    std::string string() {
        std::string text;
        for (take('"'); at < end && *at != '"'; ++at) {
            if (*at != '\\') {
                text += *at;
            } else if (++at; *at == 'u') {
                unsigned long code = std::stoul(std::string(at + 1, 4), nullptr, 16);
                at += 4;
                if (code >= 0xD800 && code < 0xDC00) {  // the first half of a pair
                    code = 0x10000 + ((code - 0xD800) << 10) + (std::stoul(std::string(at + 3, 4), nullptr, 16) - 0xDC00);
                    at += 6;
                }
                utf8(text, code);
            } else {
                const std::string from = "nrtbf", to = "\n\r\t\b\f";
                const auto n = from.find(*at);
                text += n == std::string::npos ? *at : to[n];
            }
        }
        take('"');
        return text;
    }

    static void utf8(std::string& text, unsigned long code) {
        if (code < 0x80) {
            text += static_cast<char>(code);
            return;
        }
        const int rest = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        const int first[] = {0xC0, 0xE0, 0xF0};
        text += static_cast<char>(first[rest - 1] | static_cast<int>(code >> 6 * rest));
        for (int n = rest - 1; n >= 0; --n) text += static_cast<char>(0x80 | static_cast<int>(code >> 6 * n & 0x3F));
    }
};

std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

// Send a request and return the body of the answer.
std::string post(const std::string& host, const std::string& port, const std::string& path, const std::string& body) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) throw std::runtime_error(host + " is not known");
    const int connection = socket(found->ai_family, SOCK_STREAM, 0);
    const bool connected = connection >= 0 && connect(connection, found->ai_addr, found->ai_addrlen) == 0;
    freeaddrinfo(found);
    if (!connected) throw std::runtime_error(host + ":" + port + " does not answer");
    const char* token = std::getenv("CONVOY_SERVE_TOKEN");
    std::string request = "POST " + path + " HTTP/1.1\r\nHost: " + host + ":" + port +
                          "\r\nContent-Type: application/octet-stream\r\nContent-Length: " + std::to_string(body.size()) +
                          (token ? std::string("\r\nAuthorization: Bearer ") + token : "") + "\r\nConnection: close\r\n\r\n" + body;
    for (std::size_t sent = 0; sent < request.size();) {
        const ssize_t step = send(connection, request.data() + sent, request.size() - sent, MSG_NOSIGNAL);
        if (step <= 0) break;  // refused early: the answer has the reason
        sent += static_cast<std::size_t>(step);
    }
    std::string answer;
    char part[65536];
    for (ssize_t size; (size = recv(connection, part, sizeof part, 0)) > 0;) answer.append(part, static_cast<std::size_t>(size));
    close(connection);
    const auto start = answer.find("\r\n\r\n");
    if (start == std::string::npos) throw std::runtime_error("the service closed the connection");
    return answer.substr(start + 4);
}

Json classify(const std::string& host, const std::string& port, const std::string& file, std::size_t classes) {
    const std::string body = post(host, port, "/predict?top_k=" + std::to_string(classes), contents(file));
    Json answer = Reader(body).value();
    if (answer.object.count("error")) throw std::runtime_error(answer["error"]["reason"].text);
    return answer;
}

bool replay(const std::string& host, const std::string& port, const std::string& folder) {
    const std::string source = contents(folder + "/golden.json");
    const Json golden = Reader(source).value();
    const auto& classes = golden["classes"].list;
    std::size_t same = 0;
    double largest = 0;
    for (const Json& image : golden["images"].list) {
        const Json answer = classify(host, port, folder + "/" + image["file"].text, classes.size());
        double gap = 0;
        for (std::size_t n = 0; n < classes.size(); ++n) {
            const double got = answer["probabilities"][classes[n].text].number;
            gap = std::max(gap, std::abs(got - image["probabilities"].list[n].number));
        }
        same += answer["class"].text == image["class"].text && gap <= golden["max_probability_gap"].number;
        largest = std::max(largest, gap);
    }
    const std::size_t count = golden["images"].list.size();
    std::cout << same << " of " << count << " golden images as measured, largest probability gap " << largest << "\n";
    return same == count;
}

int main(int count, char** words) {
    const std::vector<std::string> given(words + 1, words + count);
    if (given.size() < 3 || (given[2] == "--golden" && given.size() < 4)) {
        std::cerr << "client HOST PORT photo.jpg …   or   client HOST PORT --golden FOLDER\n";
        return 2;
    }
    try {
        if (given[2] == "--golden") return replay(given[0], given[1], given[3]) ? 0 : 1;
        for (std::size_t n = 2; n < given.size(); ++n) {
            const Json answer = classify(given[0], given[1], given[n], 5);
            std::cout << given[n] << ": " << answer["class"].text << " " << answer["probability"].number << "\n";
        }
    } catch (const std::exception& error) {
        std::cerr << "ERROR: " << error.what() << "\n";
        return 1;
    }
}
