// Call a server with java.net.http's defaults: it asks for HTTP/2 with each request, and keeps connections.
//
// Run by test_clients.py: java CallRank.java PORT COUNT PATH BODY [PATH BODY ...]. Prints one answer per line.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.concurrent.CompletableFuture;

public class CallRank {
  public static void main(String[] words) throws Exception {
    for (int i = 2; i < words.length; i += 2) {
      call(URI.create("http://127.0.0.1:" + words[0] + words[i]), words[i + 1], Integer.parseInt(words[1]));
    }
  }

  private static void call(URI uri, String body, int count) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    HttpRequest request =
        HttpRequest.newBuilder(uri)
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    for (int i = 0; i < count; ++i) {
      print(client.send(request, HttpResponse.BodyHandlers.ofString()));
    }
    var waiting = new ArrayList<CompletableFuture<HttpResponse<String>>>();
    for (int i = 0; i < count; ++i) {
      waiting.add(client.sendAsync(request, HttpResponse.BodyHandlers.ofString()));
    }
    for (var answer : waiting) {
      print(answer.get());
    }
  }

  private static void print(HttpResponse<String> answer) {
    if (answer.statusCode() != 200) {
      throw new IllegalStateException(answer.statusCode() + " " + answer.body());
    }
    System.out.println(answer.body().replace("\n", ""));
  }
}
